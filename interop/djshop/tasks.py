import os

from celery import shared_task
from django.db import connection, transaction
from django.utils import timezone

from .models import Order


def note(line):
    with open(os.environ["INTEROP_NOTES"], "a") as notes:
        notes.write(f"{line}\n")


@shared_task
def fulfil(order_id):
    """Is sent once the order is there, and not before."""
    changed = Order.objects.filter(pk=order_id, state="new").update(state="done")
    note(f"fulfilled {order_id} {changed}")


@shared_task
def place(name, fail=False):
    with transaction.atomic():
        order = Order.objects.create(name=name)
        fulfil.delay_on_commit(order.pk)
        note(f"placed {name}")
        if fail:
            raise ValueError(name)
    return order.pk


@shared_task(bind=True)
def look(self, order_id):
    """What stands in the database, and how the task found its connection."""
    was_open = connection.connection is not None
    return {"state": Order.objects.get(pk=order_id).state, "was_open": was_open, "pid": os.getpid(),
            "acks_late": self.acks_late, "zone": str(timezone.get_current_timezone())}
