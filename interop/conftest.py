"""Redis, Celery's workers and celeriac's, started as a user would start them, each as a child of the tests.

Each module of tests has a database of its own, and a worker on each side, started when a test asks for it. The version of
Celery is that of the interpreter that runs the tests.
"""

import contextlib
import itertools
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import celery
import pytest
import redis as redis_py

import proj

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
# The command line with the suite's tasks; `cargo build -p celeriac-cli --example interop_worker` makes it.
CELERIAC = pathlib.Path(os.environ.get("CELERIAC_INTEROP", TARGET / "debug" / "examples" / "interop_worker"))
# How long a test waits for what must happen, before it calls it lost.
PATIENCE = 60
CELERY = tuple(int(part) for part in celery.__version__.split(".")[:2])
RUST_NODE = "rust@interop"
PYTHON_NODE = "py@interop"


def pytest_addoption(parser):
    parser.addoption("--reference", action="store_true",
                     help="let Celery stand in for celeriac, to test the tests")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--reference"):
        skip = pytest.mark.skip(reason="is about celeriac alone")
        for item in items:
            if item.get_closest_marker("celeriac"):
                item.add_marker(skip)


def pytest_configure(config):
    config.addinivalue_line("markers", "celeriac: asserts what only celeriac does")
    config.addinivalue_line("markers", "signals: watches signals of Celery's")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(look, complaint, patience=PATIENCE):
    """Waits for a condition, and returns what was found."""
    deadline = time.monotonic() + patience
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, complaint
        time.sleep(0.05)


class Child:
    """A process of the tests' own, with its log; it ends with them."""

    def __init__(self, name, log, command, **more):
        self.name, self.log = name, log
        with open(log, "ab") as out:
            self.process = subprocess.Popen([str(part) for part in command], stdout=out, stderr=out,
                                            start_new_session=True, **more)

    @property
    def pid(self):
        return self.process.pid

    def lives(self):
        return self.process.poll() is None

    def stop(self):
        """As an operator would: what runs may finish."""
        if self.lives():
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(PATIENCE)
        return self.process.returncode

    def kill(self):
        """As a machine that loses power would: the whole group, which is this child's own."""
        if self.lives():
            os.killpg(self.pid, signal.SIGKILL)
            self.process.wait(PATIENCE)

    def end(self):
        try:
            self.stop()
        except subprocess.TimeoutExpired:
            self.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def text(self):
        return self.log.read_text(errors="replace")


class Place:
    """A database, and what works on it: workers of both sides, clients of both sides, and the notes their tasks leave."""

    def __init__(self, folder, server, db, reference):
        self.folder, self.server, self.db, self.reference = folder, server, db, reference
        self.url = f"redis://127.0.0.1:{server.port}/{db}"
        self.redis = redis_py.Redis(port=server.port, db=db)
        self.notes_file = folder / "notes"
        self.notes_file.touch()
        self.children = []
        self.numbers = itertools.count()
        os.environ["INTEROP_NOTES"] = str(self.notes_file)
        self.app = self.client()
        self.app.set_current()

    def client(self, **settings):
        """A Celery application to send with."""
        return proj.make_app(self.url, **settings)

    def env(self, **more):
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("CELERIAC_", "CELERY_", "RUST_LOG"))}
        return kept | {"INTEROP_REDIS": self.url, "INTEROP_NOTES": str(self.notes_file), "PYTHONPATH": str(HERE),
                       "PYTHONDONTWRITEBYTECODE": "1"} | more

    def start(self, name, command, **more):
        log = self.folder / f"{next(self.numbers)}-{name.replace('@', '-')}.log"
        child = Child(name, log, command, cwd=self.folder, env=self.env(), **more)
        self.children.append(child)
        return child

    def celery(self, *arguments, app="proj", timeout=PATIENCE):
        """Runs a command of Celery's, and returns what it did."""
        command = [sys.executable, "-m", "celery", "-A", app, *arguments]
        return subprocess.run(command, cwd=self.folder, env=self.env(), capture_output=True, text=True,
                              timeout=timeout)

    def celeriac(self, *arguments, timeout=PATIENCE, settings=None):
        """Runs a command of celeriac's, and returns what it did."""
        config = self.config("client", settings or {})
        command = [CELERIAC, "-b", self.url, "--config", config, *arguments]
        return subprocess.run([str(part) for part in command], cwd=self.folder, env=self.env(),
                              capture_output=True, text=True, timeout=timeout)

    def config(self, name, settings):
        """A configuration file of celeriac's, with the routes of the Python application."""
        path = self.folder / f"{name}.toml"
        lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
        lines += ["task_default_queue = \"python\"" for _ in [0] if "task_default_queue" not in settings]
        lines += ['[[task_routes]]\ntask = "rust.*"\nqueue = "rust"', '[[task_routes]]\ntask = "py.*"\nqueue = "python"']
        path.write_text("\n".join(lines) + "\n")
        return path

    def python_worker(self, *options, node=PYTHON_NODE, queues="python", app="proj", concurrency=2):
        return self.start(node, [sys.executable, "-m", "celery", "-A", app, "worker", "-n", node, "-Q", queues,
                                 "-c", concurrency, "-l", "info", *options])

    def rust_worker(self, *options, node=RUST_NODE, queues="rust", concurrency=4, **settings):
        """The worker under test."""
        if self.reference:
            return self.python_worker(*options, node=node, queues=queues, app="reference",
                                      concurrency=concurrency)
        config = self.config(f"worker-{next(self.numbers)}", settings | {"result_extended": True})
        return self.start(node, [CELERIAC, "-b", self.url, "--config", config, "worker", "-n", node, "-Q", queues,
                                 "-c", concurrency, "-l", "info", *options])

    def notes(self):
        return self.notes_file.read_text().splitlines()

    def noted(self, line):
        """Waits for a note."""
        return until(lambda: line in self.notes(), f"no task has noted {line!r}; notes: {self.notes()}")

    def reachable(self, node):
        """Waits until a worker answers."""
        return until(lambda: self.app.control.ping(destination=[node], timeout=1),
                     f"{node} does not answer a ping")

    def send(self, name, *args, **options):
        """Sends one task from Python."""
        return self.app.send_task(name, args, options.pop("kwargs", None), **options)

    def get(self, name, *args, **options):
        """Sends one task from Python, and waits for its value."""
        return self.send(name, *args, **options).get(timeout=PATIENCE)

    def sig(self, name, *args, **kwargs):
        return self.app.signature(name, args=args, kwargs=kwargs)

    def end(self):
        for child in reversed(self.children):
            child.end()
        self.app.close()
        self.redis.close()

    def logs(self):
        return "\n".join(f"== {child.name}\n{child.text()[-6000:]}" for child in self.children)


class Server:
    """A Redis of the tests' own."""

    def __init__(self, folder):
        self.port = free_port()
        self.child = Child("redis", folder / "redis.log", [
            "redis-server", "--port", self.port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
            "--databases", 256, "--dir", folder])
        client = redis_py.Redis(port=self.port)
        until(lambda: answers(client), "redis-server does not answer")
        client.close()


def answers(client):
    try:
        return client.ping()
    except redis_py.ConnectionError:
        return False


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("redis"))
    yield server
    server.child.end()


DATABASES = itertools.count()


def open_place(server, tmp_path_factory, request, name):
    place = Place(tmp_path_factory.mktemp(name), server, next(DATABASES), request.config.getoption("--reference"))
    try:
        yield place
    finally:
        place.end()
        # Shown by pytest where a test has failed.
        print(place.logs())


@pytest.fixture(scope="module")
def shared(server, tmp_path_factory, request):
    """A place for all tests of a module, without workers yet."""
    yield from open_place(server, tmp_path_factory, request, request.module.__name__)


@pytest.fixture(scope="module")
def rust_side(shared):
    return shared.rust_worker()


@pytest.fixture(scope="module")
def python_side(shared):
    return shared.python_worker()


@pytest.fixture
def rust(shared, rust_side):
    """The module's place, with a worker in Rust."""
    yield from watched(shared, rust_side)


@pytest.fixture
def both(shared, rust_side, python_side):
    """The module's place, with a worker on each side."""
    yield from watched(shared, rust_side, python_side)


@pytest.fixture
def python(shared, python_side):
    """The module's place, with a worker in Python."""
    yield from watched(shared, python_side)


def watched(place, *workers):
    os.environ["INTEROP_NOTES"] = str(place.notes_file)
    place.app.set_current()
    yield place
    for worker in workers:
        assert worker.lives(), f"{worker.name} has ended:\n{worker.text()[-6000:]}"


@pytest.fixture
def place(server, tmp_path_factory, request):
    """A place for one test, without workers."""
    yield from open_place(server, tmp_path_factory, request, "place")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session, exitstatus):
    """Ends the process once all is reported: at its exit, and with each result that the traceback of a failed test has kept,
    Celery's clients would go on trying to reach servers that are stopped."""
    yield
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(session.exitstatus))
