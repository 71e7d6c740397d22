"""An application with `async def` tasks, and some that are not."""

import asyncio
import os
import threading
import time

from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded

URL = os.environ["INTEROP_REDIS"]
app = Celery("pycrowd", broker=URL, backend=URL)
app.conf.update(task_default_queue="pycrowd", broker_connection_retry_on_startup=True)


def note(line):
    with open(os.environ["INTEROP_NOTES"], "a") as notes:
        notes.write(f"{line}\n")


@app.task
async def nap(seconds):
    await asyncio.sleep(seconds)
    return seconds


@app.task(bind=True)
async def who(self, pause):
    first = self.request.id
    await asyncio.sleep(pause)
    return {"first": first, "second": self.request.id, "thread": threading.current_thread().name}


@app.task(bind=True, max_retries=2)
async def retry(self):
    await asyncio.sleep(0)
    if self.request.retries < 1:
        raise self.retry(countdown=0)
    return self.request.retries


@app.task
async def fail():
    await asyncio.sleep(0)
    raise ValueError("in a coroutine")


@app.task(soft_time_limit=1)
async def soft():
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        note("cleaned up")
        raise


@app.task
async def long(word):
    note(f"begin {word}")
    try:
        await asyncio.sleep(600)
    finally:
        note(f"stopped {word}")


@app.task
async def block(seconds):
    time.sleep(seconds)
    return "blocked"


@app.task
def plain(x, y):
    return x + y


@app.task
def spin(word):
    note(f"begin {word}")
    while True:
        time.sleep(0.01)


@app.task(soft_time_limit=1)
def soft_spin():
    try:
        while True:
            time.sleep(0.01)
    except SoftTimeLimitExceeded:
        return "cleaned up"


@app.task(bind=True)
def my_request(self, pause):
    time.sleep(pause)
    return self.request.id


@app.task
def die():
    os._exit(7)


@app.task
def total(numbers):
    return sum(numbers)
