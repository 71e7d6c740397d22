"""The example as its users run it: real crew, real worker, real streams, a model that counts what it is asked.

Needs the packages of requirements-test.txt, redis-server, and CELERIAC_BINARY, the program under test.
"""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import celery
import httpx
import pytest

HERE = pathlib.Path(__file__).parent
EXAMPLE = HERE.parent
PYTHON = EXAMPLE.parent.parent / "python"
BINARY = str(pathlib.Path(os.environ.get("CELERIAC_BINARY") or shutil.which("celeriac") or "celeriac").absolute())
#: How long a test waits for what must happen. Figures are printed, and asserted where the opposite takes many times as long.
PATIENCE = 120
QUIET = {"CREWAI_DISABLE_TELEMETRY": "true", "OTEL_SDK_DISABLED": "true"}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(what, condition, patience=PATIENCE):
    deadline = time.monotonic() + patience
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {patience} s"
        time.sleep(0.02)
    return found


def answers(url):
    try:
        return httpx.get(url, timeout=5).status_code < 500
    except httpx.HTTPError:
        return False


class Worker:
    """A worker's supervisor, and what it has said."""

    def __init__(self, process, log):
        self.process, self.log = process, log

    def text(self):
        return self.log.read_text(errors="replace")

    def ready(self):
        until("a worker is ready", lambda: "worker ready" in self.text() or self.process.poll() is not None)
        assert self.process.poll() is None, self.text()
        return self

    def zygote(self):
        """The process that imports the application: the only child of the supervisor that is no leader of a session."""
        children = _children(self.process.pid)
        assert len(children) == 1, children
        return children[0]

    def children(self):
        """The processes that run tasks."""
        return _children(self.zygote())

    def kill(self):
        """The supervisor alone, as `kill -9` does."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(PATIENCE)


def _children(pid):
    found = []
    for thread in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(FileNotFoundError), open(f"/proc/{pid}/task/{thread}/children") as children:
            found += map(int, children.read().split())
    return found


class Newsroom:
    """All of its processes, on ports of their own."""

    def __init__(self, folder, tokens_per_second=25):
        self.folder, self.started = folder, []
        self.redis_port, self.server_port, self.llm_port, self.web_port = (free_port() for _ in range(4))
        self.web, self.llm = f"http://127.0.0.1:{self.web_port}", f"http://127.0.0.1:{self.llm_port}"
        self.url = f"redis://127.0.0.1:{self.redis_port}/0"
        self.notes_file = folder / "notes"
        self.environment = {
            **os.environ,
            **QUIET,
            "CELERY_BROKER_URL": self.url,
            "CELERIAC_SERVER": f"http://127.0.0.1:{self.server_port}",
            "OPENAI_BASE_URL": f"{self.llm}/v1",
            "LLM_TOKENS_PER_SECOND": str(tokens_per_second),
            "CREWAI_TRACING_ENABLED": "false",
            "CREWAI_STORAGE_DIR": str(folder / "crewai"),
            "CELERIAC_PYTHON": sys.executable,
            "NEWSROOM_NOTES": str(self.notes_file),
            "PYTHONPATH": os.pathsep.join(map(str, [PYTHON, EXAMPLE, HERE, os.environ.get("PYTHONPATH", "")])),
        }
        self.app = celery.Celery("newsroom", broker=self.url, backend=self.url, set_as_current=False)

    def open(self):
        """Starts all but workers."""
        self.start("redis-server", "--port", str(self.redis_port), "--bind", "127.0.0.1", "--save", "",
                   "--dir", str(self.folder))  # fmt: skip
        self.start_llm()
        self.start_api()

    def start(self, *command, env=None):
        log = self.folder / f"{len(self.started)}.log"
        with open(log, "wb") as out:
            process = subprocess.Popen(command, cwd=self.folder, env=self.environment | (env or {}), stdout=out, stderr=out)
        self.started.append(process)
        return Worker(process, log)

    def start_llm(self):
        self.start(sys.executable, "-m", "uvicorn", "llm:api", "--port", str(self.llm_port), "--log-level", "warning")
        until("the model answers", lambda: answers(f"{self.llm}/calls"))

    def start_api(self):
        """The web application, and the server that it asks."""
        web = self.start(sys.executable, "-m", "uvicorn", "main:api", "--port", str(self.web_port), "--log-level", "warning")
        bind = f"127.0.0.1:{self.server_port}"
        server = self.start(BINARY, "-b", self.url, "serve", "--bind", bind, "--roles", "web", "--accept-unknown-tasks")
        until("the web application answers", lambda: answers(f"{self.web}/"))
        until("the server answers", lambda: answers(f"http://{bind}/readyz"))
        self.api = [web, server]

    def start_worker(self, *options, app="newsroom_app", settings=None, env=None):
        told = {"NEWSROOM_SETTINGS": json.dumps(settings or {})} | (env or {})
        concurrency = () if "-c" in options else ("-c", "1")
        return self.start(BINARY, "worker", "-A", app, *concurrency, "-l", "INFO", *options, env=told).ready()

    def submit(self, topic="celeriac"):
        """An article, by the web application."""
        answer = httpx.post(f"{self.web}/tasks", json={"task": "newsroom.article", "args": [topic]}, timeout=PATIENCE)
        answer.raise_for_status()
        return self._known(answer.json()["id"])

    def send(self, name, *args, **options):
        """Any task, by Celery's client."""
        return self._known(self.app.send_task(name, args, **options).id)

    def _known(self, task_id):
        until("the server has heard of it", lambda: httpx.get(f"{self.web}/tasks/{task_id}").status_code == 200)
        return task_id

    def result(self, task_id):
        return self.app.AsyncResult(task_id)

    def get(self, task_id):
        return self.result(task_id).get(timeout=PATIENCE)

    def revoke(self, task_id):
        """Stops it; the answer."""
        answer = httpx.post(f"{self.web}/tasks/{task_id}/revoke", json={"terminate": True}, timeout=PATIENCE)
        answer.raise_for_status()
        return answer.json()

    def calls(self):
        return httpx.get(f"{self.llm}/calls", timeout=PATIENCE).json()

    def roles(self):
        return [call["role"] for call in self.calls()]

    def until_it_writes(self, role="Researcher", tokens=3):
        """Waits until the call of a role streams."""
        until(f"the {role} writes", lambda: (calls := self.calls()) and calls[-1]["role"] == role
              and calls[-1]["tokens"] > tokens)  # fmt: skip

    def follow(self, task_id, after=None):
        """The frames of the stream, as (id, event, data)."""
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": str(after)} if after else {})
        with httpx.stream("GET", f"{self.web}/tasks/{task_id}/events", headers=headers, timeout=PATIENCE) as answer:
            answer.raise_for_status()
            frame = {}
            for line in answer.iter_lines():
                name, _, value = line.partition(": ")
                if line == "":
                    if "event" in frame:
                        yield int(frame["id"]), frame["event"], json.loads(frame["data"])
                        if frame["event"] == "end":
                            return
                    frame = {}
                elif name:
                    frame[name] = value

    def follow_as_browsers_do(self, task_id, frames):
        """Follows to the end, again from where it was whenever the stream is cut off."""
        while not frames or frames[-1][1] != "end":
            try:
                frames.extend(self.follow(task_id, after=frames[-1][0] if frames else None))
            except httpx.HTTPError:
                time.sleep(0.1)  # the API is away; EventSource waits as well

    def end(self, task_id):
        """The last frame's data."""
        *_, (_, event, data) = self.follow(task_id)
        assert event == "end"
        return data

    def notes(self):
        return self.notes_file.read_text().splitlines() if self.notes_file.exists() else []

    def stop(self):
        self.app.close()
        for process in reversed(self.started):
            process.terminate()
        for process in self.started:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def tell(self):
        """What its processes have said, for who looks why a test failed."""
        for number in range(len(self.started)):
            text = (self.folder / f"{number}.log").read_text(errors="replace")
            print(f"--- {number}\n{re.sub(chr(27) + '.[0-9;]*m', '', text)[-3000:]}")


@contextlib.contextmanager
def opened(folder, **options):
    room = Newsroom(folder, **options)
    try:
        room.open()
        yield room
    finally:
        room.stop()
        room.tell()


@pytest.fixture
def newsroom(tmp_path):
    """Without a worker: each test starts those it is about."""
    with opened(tmp_path) as room:
        yield room


@pytest.fixture
def slow_newsroom(tmp_path):
    """Whose model takes six seconds for each answer."""
    with opened(tmp_path, tokens_per_second=10) as room:
        yield room


@pytest.fixture
def very_slow_newsroom(tmp_path):
    """Whose model takes longer for an answer than an orchestrator waits."""
    with opened(tmp_path, tokens_per_second=4) as room:
        yield room


@pytest.fixture
def fast_newsroom(tmp_path):
    """Whose model answers in a third of a second."""
    with opened(tmp_path, tokens_per_second=200) as room:
        yield room
