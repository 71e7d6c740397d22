"""A Celery application as its users write them, which knows nothing of celeriac. The tests run it with Celery's worker and
with celeriac's, and expect the same of both."""

import asyncio
import os
import signal
import subprocess
import sys
import time

from billiard.process import current_process
from celery import Celery, Task, chain, chord, group, signals
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from celery.utils.log import get_task_logger

URL = os.environ["INTEROP_REDIS"]
app = Celery("pyapp", broker=URL, backend=os.environ.get("INTEROP_BACKEND", URL))
app.conf.update(
    accept_content=["json", "pickle", "msgpack", "yaml"],
    result_extended=True,
    broker_connection_retry_on_startup=True,
    task_default_queue="pyapp",
    worker_soft_shutdown_timeout=float(os.environ.get("INTEROP_SOFT", 0)),
)
if "INTEROP_VISIBILITY" in os.environ:
    # A worker of Celery's looks all the time for what nobody has vouched for that long.
    app.conf.broker_transport_options = {
        "visibility_timeout": float(os.environ["INTEROP_VISIBILITY"]),
        "unacked_restore_interval": 0.5,
        "unacked_restore_throttle": 1,
    }
logger = get_task_logger(__name__)


def note(line):
    with open(os.environ["INTEROP_NOTES"], "a") as notes:
        notes.write(f"{line}\n")


class Broken(Exception):
    def __init__(self, what, number):
        super().__init__(what, number)
        self.what, self.number = what, number


class Watched(Task):
    """A class of one's own, with the hooks that Celery has."""

    greeting = "hello"

    def __call__(self, *args, **kwargs):
        note(f"call {self.name}")
        return super().__call__(*args, **kwargs)

    def before_start(self, task_id, args, kwargs):
        note(f"before_start {task_id}")

    def on_success(self, retval, task_id, args, kwargs):
        note(f"on_success {task_id} {retval}")

    def on_failure(self, exc, task_id, args, kwargs, einfo):
        note(f"on_failure {task_id} {exc!r}")

    def on_retry(self, exc, task_id, args, kwargs, einfo):
        note(f"on_retry {task_id} {exc!r}")

    def after_return(self, status, retval, task_id, args, kwargs, einfo):
        note(f"after_return {task_id} {status}")


@app.task
def add(x, y):
    return x + y


@app.task
def mul(x, y):
    return x * y


@app.task
def xsum(numbers):
    return sum(numbers)


@app.task
def echo(value):
    return value


@app.task
def fail(message="boom"):
    raise ValueError(message)


@app.task
def broken():
    raise Broken("engine", 7)


@app.task(bind=True)
def who(self):
    request = self.request
    return {
        "id": request.id, "task": self.name, "hostname": request.hostname, "retries": request.retries,
        "root_id": request.root_id, "parent_id": request.parent_id, "group": request.group,
        "delivery_info": request.delivery_info, "origin": request.origin, "correlation_id": request.correlation_id,
        "args": request.args, "kwargs": request.kwargs, "called_directly": request.called_directly,
        "is_eager": request.is_eager, "timelimit": request.timelimit, "headers": (request.headers or {}).get("x-tag"),
        "pid": os.getpid(), "redelivered": request.delivery_info["redelivered"], "stamps": request.stamps,
        "place": getattr(current_process(), "index", None),
    }


@app.task(bind=True, max_retries=3)
def retry(self, times, countdown=0):
    if self.request.retries < times:
        raise self.retry(countdown=countdown, exc=RuntimeError(f"try {self.request.retries}"))
    return self.request.retries


@app.task(autoretry_for=(ConnectionError,), max_retries=2, retry_backoff=False, default_retry_delay=0)
def autoretry():
    note("autoretry")
    raise ConnectionError("away")


@app.task(base=Watched, bind=True)
def watched(self, what):
    if what == "fail":
        raise KeyError(what)
    if what == "retry" and not self.request.retries:
        raise self.retry(countdown=0, exc=OSError("again"))
    return f"{self.greeting} {what}"


@app.task
def ignore():
    note("ignored")
    raise Ignore


@app.task(bind=True)
def ignore_with_state(self):
    self.update_state(state="CUSTOM", meta={"left": "behind"})
    raise Ignore


@app.task
def reject():
    note("rejected")
    raise Reject("unwanted", requeue=False)


@app.task(bind=True, acks_late=True)
def reject_once(self):
    if not self.request.delivery_info["redelivered"]:
        note("rejected once")
        raise Reject("later", requeue=True)
    return "at last"


@app.task(bind=True)
def replace(self, x, y):
    raise self.replace(add.s(x, y))


@app.task(bind=True)
def replace_with_chord(self, numbers):
    raise self.replace(chord([add.s(n, 1) for n in numbers], xsum.s()))


@app.task(bind=True)
def add_to_chord(self, n):
    self.add_to_chord(add.s(n, n))
    return n


@app.task(bind=True)
def progress(self, gate):
    self.update_state(state="PROGRESS", meta={"done": 1, "total": 2})
    while not os.path.exists(gate):
        time.sleep(0.02)
    return "done"


@app.task(track_started=True)
def tracked(gate):
    while not os.path.exists(gate):
        time.sleep(0.02)
    return os.getpid()


@app.task(ignore_result=True)
def forget(word):
    note(word)
    return word


@app.task
def slow(seconds, word):
    note(f"begin {word}")
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(0.02)
    note(f"end {word}")
    return word


@app.task(acks_late=True)
def slow_late(seconds, word):
    return slow(seconds, word)


@app.task
async def nap(seconds, word):
    """As `slow`, for the pool that has a loop."""
    note(f"begin {word}")
    await asyncio.sleep(seconds)
    note(f"end {word}")
    return word


@app.task
def holds(word, gate):
    """Runs until a file is there."""
    note(f"begin {word}")
    while not os.path.exists(gate):
        time.sleep(0.02)
    return word


@app.task(acks_late=True)
def holds_late(word, gate):
    return holds(word, gate)


@app.task(acks_late=True)
async def holds_late_on_loop(word, gate):
    note(f"begin {word}")
    while not os.path.exists(gate):
        await asyncio.sleep(0.02)
    return word


@app.task(soft_time_limit=1)
def soft():
    try:
        time.sleep(60)
    except SoftTimeLimitExceeded:
        return "cleaned up"


@app.task(soft_time_limit=1)
def soft_uncaught():
    time.sleep(60)


@app.task(time_limit=1)
def hard():
    note(f"hard {os.getpid()}")
    time.sleep(60)


@app.task(time_limit=1)
def loop_in_c():
    note(f"loop {os.getpid()}")
    return sum(range(10 ** 12))


@app.task(time_limit=1)
def with_grandchild():
    process = subprocess.Popen(["sleep", "600"])
    note(f"grandchild {process.pid}")
    process.wait()


@app.task
def die(number=signal.SIGKILL):
    note(f"die {os.getpid()}")
    os.kill(os.getpid(), number)
    time.sleep(60)


@app.task(acks_late=True)
def die_late():
    note("die late")
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


@app.task(bind=True, acks_late=True, reject_on_worker_lost=True)
def die_once(self):
    if not self.request.delivery_info["redelivered"]:
        note("died once")
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
    return "survived"


@app.task(bind=True, retry_on_worker_lost=True, default_retry_delay=0)
def die_and_retry(self):
    if not self.request.retries:
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
    return self.request.retries


@app.task(base=Watched, time_limit=1)
def watched_hard():
    time.sleep(60)


@app.task
def hears(word):
    """Goes on when it is sent a signal that it knows."""
    signal.signal(signal.SIGUSR2, lambda number, _: note(f"heard {number} {word}"))
    return slow(2, word)


@app.task
def interruptible(word):
    try:
        slow(60, word)
    except SoftTimeLimitExceeded:
        note(f"cleaned up {word}")
        raise


if "INTEROP_NEWER" in os.environ:

    @app.task
    def newer(n):
        """What an older release of the application does not have."""
        return n


@app.task
def leave():
    sys.exit(3)


@app.task
def errback(task_id):
    note(f"errback {task_id}")


@app.task
def errback_new(request, exc, traceback):
    note(f"errback_new {request.id} {exc!r}")


@app.task
def callback(value, word):
    note(f"callback {word} {value}")
    return value


@app.task(bind=True)
def spawn(self, n):
    return [add.delay(i, i).id for i in range(n)]


@app.task
def wait_inside():
    try:
        add.delay(1, 1).get(timeout=5)
    except RuntimeError as why:
        return str(why).split(".")[0]


@app.task
def talk():
    print("printed by a task")
    logger.info("logged by a task")
    return "talked"


@app.task(rate_limit="2/s")
def limited(n):
    return time.time()


@app.task
def big(size):
    return "x" * size


@app.task
def unserializable():
    return object()


@signals.worker_init.connect
def worker_init(sender=None, **_):
    note(f"worker_init {sender.app.main} {bool(sender.hostname)}")


@signals.celeryd_init.connect
def celeryd_init(sender=None, conf=None, **_):
    note(f"celeryd_init {sender} {conf.task_default_queue}")


@signals.celeryd_after_setup.connect
def celeryd_after_setup(sender=None, **_):
    note(f"celeryd_after_setup {sender}")


@signals.worker_before_create_process.connect
def worker_before_create_process(**_):
    note(f"worker_before_create_process {os.getpid()}")


@signals.worker_shutting_down.connect
def worker_shutting_down(sender=None, sig=None, how=None, exitcode=None, **_):
    note(f"worker_shutting_down {sender} {sig} {how} {exitcode}")


@signals.worker_ready.connect
def worker_ready(**_):
    note("worker_ready")


BARREN = os.environ.get("INTEROP_BARREN")
if BARREN:
    app.conf.worker_proc_alive_timeout = 1


@signals.worker_process_init.connect
def worker_process_init(**_):
    # While that file is there, no process comes up: it ends, or is never done with it.
    if BARREN and os.path.exists(BARREN):
        if open(BARREN).read() == "ends":
            os._exit(9)
        time.sleep(3600)
    note(f"worker_process_init {os.getpid()}")


@signals.worker_process_shutdown.connect
def worker_process_shutdown(pid=None, **_):
    note(f"worker_process_shutdown {pid}")


@signals.worker_shutdown.connect
def worker_shutdown(**_):
    note("worker_shutdown")


# Without these an application leaves more to celeriac.
if "INTEROP_PLAIN" not in os.environ:

    @signals.task_received.connect
    def received(request=None, **_):
        if request.name == "pyapp.watched":
            note(f"received {request.id} {request.task.name} {request.hostname} {request.argsrepr}")

    @signals.task_unknown.connect
    def unknown(message=None, exc=None, name=None, id=None, **_):
        note(f"unknown {id} {name} {type(exc).__name__} {message.headers['task']}")

    @signals.task_prerun.connect
    def prerun(task_id=None, task=None, **_):
        if task.name == "pyapp.watched":
            note(f"prerun {task_id}")

    @signals.task_postrun.connect
    def postrun(task_id=None, task=None, state=None, **_):
        if task.name == "pyapp.watched":
            note(f"postrun {task_id} {state}")

    @signals.task_success.connect
    def success(sender=None, **_):
        if sender.name == "pyapp.watched":
            note("signal success")

    @signals.task_failure.connect
    def failure(sender=None, task_id=None, exception=None, **_):
        note(f"signal failure {task_id} {type(exception).__name__}")

    @signals.task_retry.connect
    def retried(sender=None, reason=None, **_):
        if sender.name == "pyapp.watched":
            note("signal retry")

    @signals.task_revoked.connect
    def revoked(request=None, terminated=None, expired=None, signum=None, **_):
        note(f"revoked by {request.id} {signum and int(signum)}")
        note(f"signal revoked {request.id} {bool(terminated)} {bool(expired)}")


@app.task(acks_late=True, reject_on_worker_lost=True)
def die_always():
    note("died again")
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


@app.task
def deaf():
    """Hears neither a polite signal nor the end of its supervisor's patience."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note(f"deaf {os.getpid()}")
    while True:
        time.sleep(1)


HOARD = []


@app.task
def hoard(megabytes):
    HOARD.append(bytearray(os.urandom(1024)) * (megabytes * 1024))
    return megabytes


@app.task(acks_late=True, reject_on_worker_lost=True)
def devour():
    """Takes memory until somebody stops it."""
    note(f"devours {os.getpid()}")
    while True:
        HOARD.append(bytearray(os.urandom(1024)) * 4096)
        time.sleep(0.01)


@app.task
def devour_early():
    devour()


@app.task
def imports():
    """Whether a large module was there before this task imported it."""
    known = "xml.dom.minidom" in sys.modules
    import xml.dom.minidom  # noqa: F401

    return known
