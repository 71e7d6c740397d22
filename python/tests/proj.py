"""A Celery application whose tasks use what `celeriac` offers them."""

import asyncio
import os
import pathlib
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from celery import Celery, signals
from celery.exceptions import SoftTimeLimitExceeded
from celery.result import GroupResult

import celeriac

URL = os.environ["PLACE_URL"]
app = Celery("proj", broker=URL, backend=os.environ.get("PLACE_BACKEND", URL))
app.conf.update(broker_connection_retry_on_startup=True, task_default_queue="proj", task_acks_late=True)


def note(line):
    with open(os.environ["PLACE_NOTES"], "a") as notes:
        notes.write(f"{line}\n")


def noting(line, value):
    note(line)
    return value


def wait_for(path):
    deadline = time.monotonic() + 60
    while not pathlib.Path(path).exists() and time.monotonic() < deadline:
        time.sleep(0.01)


@app.task
def add(x, y):
    return x + y


@app.task
def reports():
    celeriac.progress(1, 3, what="first")
    for word in ["a", "b", "c"]:
        celeriac.token(word)
    celeriac.emit("found", {"path": pathlib.PurePath("x").name, "when": None})
    celeriac.emit("odd", object())
    celeriac.token("d")
    return celeriac.cancelled()


@app.task
def lone_token(until):
    """Streams one word, and says nothing more until somebody has seen it."""
    celeriac.token("hello")
    wait_for(until)


@app.task(acks_late=False)
def begins_early(until):
    """Runs at most once."""
    note("begun early")
    wait_for(until)


@app.task
def from_threads():
    def work(number):
        celeriac.emit("thread", number)
        celeriac.token(f"<{number}>")
        return celeriac.step(f"thread {number}", lambda: number * 2)

    with ThreadPoolExecutor(4) as pool:
        doubled = list(pool.map(work, range(20)))
    plain = threading.Thread(target=celeriac.emit, args=("thread", 20))
    plain.start()
    plain.join()
    return doubled


@app.task
def in_asyncio():
    async def double(number):
        note(f"double {number}")
        await asyncio.sleep(0)
        return number * 2

    async def main():
        steps = [celeriac.step(f"double {number}", double, number) for number in range(5)]
        return await asyncio.gather(*steps)

    return asyncio.run(main())


@app.task(bind=True, max_retries=3)
def steps(self, kind):
    first = celeriac.step("one", noting, "one", {"pair": (1, 2), "n": None})
    again = [celeriac.step("many", noting, f"many {number}", number) for number in range(3)]
    if not self.request.retries:
        if kind == "retry":
            raise self.retry(countdown=0)
        if kind == "kill" and not self.request.delivery_info["redelivered"]:
            os.kill(os.getpid(), signal.SIGKILL)
    celeriac.step("last", noting, "last", None)
    return [first, again]


@app.task
def unkept():
    return celeriac.step("lock", threading.Lock)


@app.task(soft_time_limit=1, time_limit=20)
def swallows(how):
    """As agent frameworks do: every exception is caught, and the work goes on."""
    note(f"swallows {os.getpid()}")
    while True:
        try:
            while True:
                time.sleep(0.01)
                if how == "token":
                    celeriac.token("x")
                elif how == "progress":
                    celeriac.progress(1)
                elif how == "step":
                    celeriac.step("s", int)
        except Exception as why:
            note(f"swallowed {type(why).__name__}")


@app.task(soft_time_limit=1, time_limit=20)
def minds():
    try:
        time.sleep(30)
    except SoftTimeLimitExceeded:
        celeriac.emit("cleanup", celeriac.cancelled())
        return "in time"


@app.task(soft_time_limit=1, time_limit=60)
def in_the_midst_of_frames():
    """The limit comes while frames are sent one after the other."""
    count = 0
    try:
        while True:
            celeriac.emit("n", count)
            count += 1
    except SoftTimeLimitExceeded:
        return count


@app.task
def failing():
    raise ValueError("no")


@app.task
def heard(*_):
    note("heard")


@app.task
def steps_then_wait(path):
    value = celeriac.step("slow", noting, "slow", 7)
    note("kept")
    wait_for(path)
    return value


@app.task
def progresses(path):
    celeriac.progress(1, 2, what="half")
    wait_for(path)
    return celeriac.step("last", str, "over")


@app.task
def total(numbers):
    return sum(numbers)


@app.task
def echo(value):
    return value


@app.task(bind=True, max_retries=2)
def flaky(self):
    if self.request.retries < 2:
        raise self.retry(countdown=0, exc=ValueError("not yet"))
    return self.request.retries


@app.task(bind=True)
def replaced(self, x):
    raise self.replace(add.s(x, 1))


@app.task(bind=True)
def sends(self, x):
    """Sends another task from within."""
    return add.delay(x, x).id


@signals.worker_ready.connect
def sends_when_ready(**_):
    sends_outside("worker_ready")


@signals.worker_process_init.connect
def sends_at_birth(**_):
    sends_outside("worker_process_init")


def sends_outside(where):
    """Sends a task from without any."""
    if os.environ.get("PLACE_SENDS"):
        try:
            note(f"{where} sent {add.delay(2, 3).id}")
        except Exception as why:
            note(f"{where} failed: {why}")


@app.task
def catches(path):
    """Notes the signal that it is stopped by."""

    def caught(*_):
        pathlib.Path(path).write_text("caught")
        os._exit(1)

    signal.signal(signal.SIGUSR2, caught)
    pathlib.Path(path).write_text("ready")
    wait_for(f"{path} never")


@app.task
def governs(waits, runs, ended):
    """Revokes tasks, forgets one, and keeps a group for a while."""
    app.AsyncResult(waits).revoke()
    app.AsyncResult(runs).revoke(terminate=True, signal="USR2")
    app.AsyncResult(ended).forget()
    kept = GroupResult("kept", [app.AsyncResult(waits)], app=app)
    seen = [GroupResult.restore("kept", app=app)]
    kept.save()
    seen.append(GroupResult.restore("kept", app=app))
    kept.delete()
    seen.append(GroupResult.restore("kept", app=app))
    return [found and found.as_tuple() for found in seen]


@app.task(bind=True)
def custom(self, path):
    self.update_state(state="HALF", meta={"done": 1})
    wait_for(path)
    return "whole"


@app.task(time_limit=1)
def endless():
    while True:
        time.sleep(0.1)


@app.task
def dies():
    os.kill(os.getpid(), signal.SIGKILL)


@app.task
def failed(request, exc, traceback):
    note(f"failed {request.id} {type(exc).__name__}")
