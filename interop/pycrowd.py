"""An application with `async def` tasks, and some that are not."""

import asyncio
import contextvars
import os
import socket
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


@app.task
async def steps_down(number):
    """Calls another task as a function, and itself."""
    await nap(0)
    return [number, *(await steps_down(number - 1) if number else [])]


@app.task
def runs_a_loop():
    return asyncio.run(nap(0.01))


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


MET = {}


@app.task
async def meet(word, size):
    """Ends when so many of it run at once."""
    count, all_here = MET.setdefault(word, ([], asyncio.Event()))
    count.append(1)
    if len(count) == size:
        all_here.set()
    await asyncio.wait_for(all_here.wait(), 120)
    return len(count)


@app.task
def pid():
    return os.getpid()


@app.task(acks_late=True)
async def holds(word, mark):
    """Runs until a file is there."""
    note(f"begin {word}")
    while not os.path.exists(mark):
        await asyncio.sleep(0.02)
    return os.getpid()


@app.task(acks_late=True)
def holds_thread(word, mark):
    note(f"begin {word}")
    while not os.path.exists(mark):
        time.sleep(0.02)
    return os.getpid()


@app.task
async def stubborn(word, times):
    """Swallows so many cancellations."""
    note(f"begin {word}")
    for number in range(times):
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            note(f"swallowed {word}")
    try:
        await asyncio.sleep(600)
    finally:
        note(f"stopped {word}")


@app.task
async def block_for_ever(word):
    note(f"begin {word}")
    try:
        time.sleep(600)
    finally:
        note(f"stopped {word}")


@app.task
async def soft_block():
    try:
        time.sleep(600)
    except SoftTimeLimitExceeded:
        return "cleaned up"


@app.task
def sleeps(word):
    """Cannot be told anything meanwhile."""
    note(f"begin {word}")
    time.sleep(600)


@app.task
def hogs(word):
    """Lets nothing else of Python run."""
    import ctypes

    note(f"begin {word}")
    ctypes.PyDLL(None).sleep(600)


@app.task
def reads(word):
    """Waits at a socket, as for a model that says nothing yet."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as sock:
        note(f"begin {word}")
        try:
            sock.makefile("rb").readline()
            note(f"went on {word}")
        finally:
            note(f"stopped {word}")


@app.task
def streams(word):
    """As agent frameworks do: every exception is caught, and the work goes on."""
    import celeriac

    number = 0
    while True:
        try:
            while True:
                celeriac.token(f"{number} ")
                if number == 10:
                    note(f"begin {word}")
                number += 1
                time.sleep(0.01)
        except Exception:
            note(f"swallowed {word}")


@app.task
async def streams_async(word):
    import celeriac

    number = 0
    while True:
        try:
            while True:
                celeriac.token(f"{number} ")
                if number == 10:
                    note(f"begin {word}")
                number += 1
                await asyncio.sleep(0.01)
        except (Exception, asyncio.CancelledError):
            note(f"swallowed {word}")


@app.task
def asks(word):
    """Another of its threads sees that it is to stop, at the latest when the task itself is stopped."""
    import celeriac

    context = contextvars.copy_context()

    def look():
        while not context.copy().run(celeriac.cancelled):
            time.sleep(0.01)
        note(f"seen {word}")

    threading.Thread(target=look).start()
    note(f"begin {word}")
    try:
        while True:
            time.sleep(0.01)
    finally:
        note(f"stopped {word} {celeriac.cancelled()}")


@app.task
async def asks_async(word):
    import celeriac

    note(f"begin {word}")
    try:
        await asyncio.sleep(600)
    except asyncio.CancelledError:
        note(f"seen {word}" if celeriac.cancelled() else f"unseen {word}")
        raise
    finally:
        note(f"stopped {word} {celeriac.cancelled()}")


@app.task
def exits():
    raise SystemExit(3)


@app.task
async def exits_async():
    raise SystemExit(3)
