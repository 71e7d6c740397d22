"""An application for the pools that run many tasks in a process: the same tasks on threads and as coroutines."""

import asyncio
import contextvars
import os
import threading
import time

from billiard.exceptions import SoftTimeLimitExceeded
from celery import Celery

import celeriac

URL = os.environ["PLACE_URL"]
app = Celery("many", broker=URL, backend=os.environ.get("PLACE_BACKEND", URL))
app.conf.update(broker_connection_retry_on_startup=True, task_default_queue="many", task_acks_late=True)


def note(line):
    with open(os.environ["PLACE_NOTES"], "a") as notes:
        notes.write(f"{line}\n")


def noting(line, value):
    note(line)
    return value


def wait_for(path):
    while not os.path.exists(path):
        time.sleep(0.01)


async def soon(path):
    while not os.path.exists(path):
        await asyncio.sleep(0.01)


@app.task
def add(x, y):
    return x + y


@app.task
async def add_async(x, y):
    await asyncio.sleep(0)
    return x + y


@app.task
def total(numbers):
    return sum(numbers)


@app.task
async def failing_async():
    raise ValueError("no")


@app.task
def failing():
    raise ValueError("no")


@app.task(bind=True, max_retries=2)
def flaky(self):
    if self.request.retries < 2:
        raise self.retry(countdown=0, exc=ValueError("not yet"))
    return self.request.retries


@app.task(bind=True, max_retries=2)
async def flaky_async(self):
    await asyncio.sleep(0)
    if self.request.retries < 2:
        raise self.retry(countdown=0, exc=ValueError("not yet"))
    return self.request.retries


@app.task(bind=True)
def custom(self, path):
    self.update_state(state="HALF", meta={"done": 1})
    wait_for(path)
    return add.delay(1, 1).id


@app.task(bind=True)
async def custom_async(self, path):
    self.update_state(state="HALF", meta={"done": 1})
    await soon(path)
    return (await asyncio.to_thread(add.delay, 1, 1)).id


@app.task(time_limit=1)
def endless():
    while True:
        time.sleep(0.01)


@app.task(time_limit=1)
async def endless_async():
    await asyncio.sleep(600)


@app.task
def reports(number, path):
    celeriac.progress(1, 3, of=number)
    wait_for(path)
    for word in ["a", "b", "c"]:
        celeriac.token(f"{word}{number} ")
    for place in range(200):
        celeriac.emit("n", [number, place])
    celeriac.token("last")
    return celeriac.cancelled()


@app.task
async def reports_async(number, path):
    celeriac.progress(1, 3, of=number)
    await soon(path)
    for word in ["a", "b", "c"]:
        celeriac.token(f"{word}{number} ")
        await asyncio.sleep(0)

    async def inner():
        for place in range(200):
            celeriac.emit("n", [number, place])

    await asyncio.create_task(inner())
    celeriac.token("last")
    return celeriac.cancelled()


@app.task
def from_threads():
    def work(number):
        celeriac.emit("thread", number)

    known = threading.Thread(target=contextvars.copy_context().run, args=(work, 1))
    unknown = threading.Thread(target=work, args=(2,))
    for thread in (known, unknown):
        thread.start()
        thread.join()


@app.task
async def from_threads_async():
    await asyncio.to_thread(celeriac.emit, "thread", 1)
    await asyncio.get_running_loop().run_in_executor(None, celeriac.emit, "thread", 2)


@app.task(bind=True, max_retries=3)
def steps(self, word):
    found = [celeriac.step("one", noting, f"one {word}", {"pair": (1, 2)})]
    found += [celeriac.step("many", noting, f"many {word} {number}", number) for number in range(3)]
    if not self.request.retries:
        raise self.retry(countdown=0)
    return found


@app.task(bind=True, max_retries=3)
async def steps_async(self, word):
    async def noted(line, value):
        await asyncio.sleep(0)
        return noting(line, value)

    found = [await celeriac.step("one", noted, f"one {word}", {"pair": (1, 2)})]
    found += [await asyncio.to_thread(celeriac.step, "many", noting, f"many {word} {number}", number) for number in range(3)]
    if not self.request.retries:
        raise self.retry(countdown=0)
    return found


@app.task
async def many_steps(size):
    """All at once, on the one loop."""

    async def doubled(number):
        await asyncio.sleep(0)
        return number * 2

    return await asyncio.gather(*(celeriac.step(f"step {number}", doubled, number) for number in range(size)))


@app.task
async def step_on_the_loop():
    return celeriac.step("sync", int)


@app.task(soft_time_limit=1, time_limit=20)
def swallows():
    while True:
        try:
            while True:
                time.sleep(0.01)
                celeriac.token("x")
        except Exception as why:
            note(f"swallowed {type(why).__name__}")


@app.task(soft_time_limit=1, time_limit=20)
async def swallows_async():
    while True:
        try:
            while True:
                await asyncio.sleep(0.01)
                celeriac.token("x")
        except (Exception, asyncio.CancelledError) as why:
            note(f"swallowed {type(why).__name__}")


@app.task(soft_time_limit=1, time_limit=20)
def minds():
    try:
        wait_for("/nowhere")
    except SoftTimeLimitExceeded:
        celeriac.emit("cleanup", celeriac.cancelled())
        return "in time"


@app.task(soft_time_limit=1, time_limit=20)
async def minds_async():
    try:
        await asyncio.sleep(30)
    except asyncio.CancelledError:
        celeriac.emit("cleanup", celeriac.cancelled())
        return "in time"


@app.task
def streams():
    while True:
        celeriac.token("x ")
        time.sleep(0.01)


@app.task
async def streams_async():
    while True:
        celeriac.token("x ")
        await asyncio.sleep(0.01)


@app.task
async def floods(size):
    """Says far more than a line holds, and lets nobody wait for it but at its end."""
    for number in range(size):
        celeriac.emit("n", number)
        if number % 100 == 0:
            await asyncio.sleep(0)
    return size
