"""Celery in place of the worker under test: with `--reference` the suite runs against this, to show that what it expects
is what Celery does. It also takes over from celeriac where the tests stop that for good."""

import os

from proj import VISIBILITY_TIMEOUT, add_tasks, make_app

app = make_app(os.environ["INTEROP_REDIS"], task_acks_late=True, broker_transport_options={
    "visibility_timeout": VISIBILITY_TIMEOUT,
    "unacked_restore_interval": 0.2,
    "unacked_restore_throttle": 1,
})
add_tasks(app, "rust")


@app.task(name="rust.types")
def types(at, naive, day, time, amount, id, bytes):
    text = [at.isoformat().replace("+00:00", "Z"), naive.isoformat(), str(day), str(time), str(amount), str(id),
            str(list(bytes))]
    return {"text": text, "back": [at, naive, day, time, amount, id, bytes]}


class DiskOnFire(Exception):
    pass


@app.task(name="rust.burn")
def burn(place):
    raise DiskOnFire(f"the disk is on fire in {place}")
