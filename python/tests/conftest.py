"""Fixtures: a Redis, a worker of celeriac's or of Celery's, and clients, each started as a user would.

What needs the program `celeriac` is skipped where CELERIAC_BINARY does not name one.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import Any

import pytest

HERE = pathlib.Path(__file__).resolve().parent
PACKAGE = HERE.parent
#: How long a test waits for what must happen, before it calls it lost.
PATIENCE = 30
sys.path[:0] = [str(PACKAGE), str(HERE)]


def binary() -> str:
    found = os.environ.get("CELERIAC_BINARY") or shutil.which("celeriac")
    if not found:
        pytest.skip("CELERIAC_BINARY names no program")
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(look: Any, complaint: str, patience: float = PATIENCE) -> Any:
    """Waits for a condition, and returns what was found."""
    deadline = time.monotonic() + patience
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, complaint
        time.sleep(0.05)


class Process:
    """A process of the tests' own, with its log; it ends with them."""

    def __init__(self, log: pathlib.Path, command: list[Any], **more: Any) -> None:
        self.log = log
        with open(log, "ab") as out:
            command = [str(part) for part in command]
            self.process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True, **more)

    def kill(self) -> None:
        """As a machine that loses power would: the group with all that is in it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(PATIENCE)

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()

    def text(self) -> str:
        return self.log.read_text(errors="replace")


class Place:
    """A broker, and what works on it."""

    def __init__(self, folder: pathlib.Path, url: str, store: str | None = None) -> None:
        self.folder, self.url = folder, url
        #: What the server and celeriac's worker open.
        self.store = store or url
        self.notes_file = folder / "notes"
        self.notes_file.touch()
        self.numbers = itertools.count()
        self.processes: list[Process] = []
        self.env: dict[str, str] = {}
        self.api = ""
        #: The application, as this place's clients have it.
        self.proj: Any = None
        self.app: Any = None

    def start(self, *command: Any, **more: str) -> Process:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("CELERIAC_", "CELERY_", "RUST_LOG"))}
        env = kept | {"PLACE_URL": self.url, "PLACE_NOTES": str(self.notes_file), "PYTHONDONTWRITEBYTECODE": "1",
                      "PYTHONPATH": os.pathsep.join(map(str, [PACKAGE, HERE, self.folder]))} | self.env | more  # fmt: skip
        log = self.folder / f"{next(self.numbers)}.log"
        process = Process(log, list(command), cwd=self.folder, env=env)
        self.processes.append(process)
        return process

    def worker(
        self, *options: Any, app: str = "proj", name: str = "w", concurrency: int = 2, **more: str
    ) -> Process:
        command = [binary(), "-A", app, "-b", self.store, "--python", sys.executable, "worker", "-n", f"{name}@test",
                   "-c", concurrency, "-l", "info"]  # fmt: skip
        return self.ready(self.start(*command, *options, **more), name)

    def celery_worker(self, *options: Any, app: str = "proj", name: str = "w") -> Process:
        command = [sys.executable, "-m", "celery", "-A", app, "worker", "-n", f"{name}@test", "-c", 2, "-l", "info"]
        return self.ready(self.start(*command, *options), name)

    def ready(self, process: Process, name: str) -> Process:
        def look() -> bool:
            assert process.process.poll() is None, f"a worker has ended:\n{process.text()}"
            return "[queues]" in process.text() and self.answers(name)

        until(look, "a worker does not come up")
        return process

    def answers(self, name: str) -> bool:
        if self.url.startswith("redis"):
            return bool(self.app.control.ping([f"{name}@test"], timeout=1))
        return f"worker ready worker={name}@test" in self.processes[-1].text()

    def serve(self, *options: Any) -> str:
        """Starts the server; its address."""
        port = free_port()
        process = self.start(binary(), "-b", self.store, "serve", "--bind", f"127.0.0.1:{port}", "--roles", "web", *options)
        self.api = f"http://127.0.0.1:{port}"

        def look() -> bool:
            assert process.process.poll() is None, f"the server has ended:\n{process.text()}"
            with contextlib.suppress(OSError):
                return self.fetch("/readyz") is not None
            return False

        until(look, "the server does not come up")
        return self.api

    def fetch(self, path: str, accept: str = "application/json") -> Any:
        request = urllib.request.Request(self.api + path, headers={"Accept": accept})
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return json.loads(answer.read() or b"null")

    def log_of(self, task_id: str, ended: bool = False) -> list[tuple[str, Any]] | None:
        """The records of a task's log that are kept; `None` when it is wanted whole and has not ended."""
        found: list[tuple[str, Any]] = []
        first = self.fetch(f"/api/v1/tasks/{task_id}/events?limit=1")["first"]
        after: int | None = first - 1
        while after is not None:
            page = self.fetch(f"/api/v1/tasks/{task_id}/events?limit=100&after={after}")
            found += [(item["event"], item["data"]) for item in page["items"]]
            after = page["next"] if page["items"] else None
            if after is None and ended and not page["ended"]:
                return None
        return found

    def notes(self) -> list[str]:
        return self.notes_file.read_text().splitlines()

    def noted(self, line: str) -> None:
        until(lambda: line in self.notes(), f"no task has noted {line!r}: {self.notes()}")

    def end(self) -> None:
        for process in reversed(self.processes):
            process.end()
            print(f"== {process.log}\n{process.text()[-6000:]}")


@pytest.fixture(scope="session")
def redis_port(tmp_path_factory: pytest.TempPathFactory) -> Any:
    if not shutil.which("redis-server"):
        pytest.skip("there is no redis-server")
    folder, port = tmp_path_factory.mktemp("redis"), free_port()
    command = ["redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "", "--dir", folder]
    server = Process(folder / "log", command, env=os.environ)

    def answers() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return True
        return False

    until(answers, "redis-server does not answer")
    yield port
    server.end()


DATABASES = itertools.count()


@pytest.fixture
def place(redis_port: int, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A place on Redis for one test."""
    yield from opened(tmp_path, f"redis://127.0.0.1:{redis_port}/{next(DATABASES)}", monkeypatch)


@pytest.fixture(scope="module")
def shared(redis_port: int, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A place with a server and a worker for all tests of a module."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        url = f"redis://127.0.0.1:{redis_port}/{next(DATABASES)}"
        for place in opened(tmp_path_factory.mktemp("shared"), url, monkeypatch):
            place.serve()
            place.worker()
            yield place


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A place on SQLite: the application knows a server's address and no more, its worker has the file."""
    for place in opened_embedded(tmp_path_factory.mktemp("embedded")):
        place.worker()
        yield place


@pytest.fixture
def embedded_alone(tmp_path: pathlib.Path) -> Any:
    """The same for one test, with leases that it can wait for and no worker yet."""
    (tmp_path / "celeriac.toml").write_text("visibility_timeout = 2\nworker_restore_interval = 0.5\n")
    yield from opened_embedded(tmp_path)


def opened_embedded(folder: pathlib.Path) -> Any:
    installed(folder)
    with pytest.MonkeyPatch.context() as monkeypatch:
        place = Place(folder, "", f"sqlite://{folder}/celeriac.db")
        place.url = "celeriac+" + place.serve()
        monkeypatch.syspath_prepend(str(folder))
        yield from opened(folder, place.url, monkeypatch, place)


def installed(folder: pathlib.Path) -> None:
    """The entry points of the package, as an installation of it would have them."""
    import tomllib

    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    info = folder / f"celeriac-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: celeriac\nVersion: {project['version']}\n")
    groups = [f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
              for group, points in project["entry-points"].items()]  # fmt: skip
    (info / "entry_points.txt").write_text("\n".join(groups))


def opened(
    folder: pathlib.Path, url: str, monkeypatch: pytest.MonkeyPatch, place: Place | None = None, module: str = "proj"
) -> Any:
    monkeypatch.setenv("PLACE_URL", url)
    place = place or Place(folder, url)
    monkeypatch.setenv("PLACE_NOTES", str(place.notes_file))
    # It is made for one address.
    sys.modules.pop(module, None)
    place.proj = importlib.import_module(module)
    place.app = place.proj.app
    try:
        yield place
    finally:
        place.end()
