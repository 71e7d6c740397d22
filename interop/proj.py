"""The Celery application on Python's side. Each task has its twin in Rust, under `rust.…` where it is `py.…` here."""

import os
import pathlib
import time

from celery import Celery
from celery.exceptions import Ignore, Reject

# After so many seconds a stand-in of Celery's restores what it finds held; so short that a test can wait for it.
VISIBILITY_TIMEOUT = 3


def note(line):
    """Adds a line to the notes, which the tests read."""
    with open(os.environ["INTEROP_NOTES"], "a") as notes:
        notes.write(f"{line}\n")


def make_app(url, **settings):
    """An application on the Redis at `url`; what `celery -A proj` finds, and what the tests send with."""
    app = Celery("proj", broker=url, backend=url)
    app.conf.update(
        task_default_queue="python",
        task_routes={"rust.*": {"queue": "rust"}, "py.*": {"queue": "python"}},
        accept_content=["json", "msgpack", "yaml"],
        broker_connection_retry_on_startup=True,
        result_extended=True,
    )
    app.conf.update(settings)
    add_tasks(app, "py")
    return app


def add_tasks(app, side):
    """The tasks, under the names of one side. With `rust` Celery stands in for the worker under test."""

    def task(name, **options):
        return app.task(name=f"{side}.{name}", **options)

    @task("add")
    def add(x, y):
        return x + y

    @task("mul")
    def mul(x, y):
        return x * y

    @task("xsum")
    def xsum(numbers):
        return sum(numbers)

    @task("echo")
    def echo(value):
        return value

    @task("fail")
    def fail(message):
        raise ValueError(message)

    @task("slow", bind=True)
    def slow(self, seconds, name):
        note(name)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            time.sleep(0.02)
        return name

    @task("retry", bind=True, max_retries=3)
    def retry(self, times, countdown):
        if self.request.retries < times:
            try:
                raise RuntimeError(f"try{self.request.retries}")
            except RuntimeError as why:
                raise self.retry(countdown=countdown, exc=why)
        return self.request.retries

    @task("progress", bind=True)
    def progress(self, until):
        self.update_state(state="PROGRESS", meta={"current": 1, "total": 2})
        while not pathlib.Path(until).exists():
            time.sleep(0.02)
        return "done"

    @task("noresult", ignore_result=True)
    def noresult(name):
        note(name)
        return name

    @task("ignore")
    def ignore():
        raise Ignore

    @task("reject")
    def reject():
        raise Reject("nope", requeue=False)

    @task("context", bind=True)
    def context(self, value):
        request = self.request
        return {
            "id": request.id,
            "root_id": request.root_id,
            "parent_id": request.parent_id,
            "group": request.group,
            "group_index": request.group_index,
            "retries": request.retries,
            "origin": request.origin,
            "stamps": request.stamps,
            "custom": {"x-custom": (request.headers or {}).get("x-custom")},
            "queue": request.delivery_info["routing_key"],
            "value": value,
        }

    @task("spawn")
    def spawn(task, args):
        return app.send_task(task, args).id

    @task("replace", bind=True)
    def replace(self, task, args):
        raise self.replace(app.signature(task, args))

    @task("errback")
    def errback(task_id):
        note(f"{side}.errback {task_id}")

    @task("errback_new")
    def errback_new(request, exc, traceback):
        note(f"{side}.errback_new {request.id} {exc!r}")

    @task("callback")
    def callback(value, name):
        note(f"{side}.callback {name} {value}")


if "INTEROP_REDIS" in os.environ:
    app = make_app(os.environ["INTEROP_REDIS"])
