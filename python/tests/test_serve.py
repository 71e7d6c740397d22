"""`celeriac serve -A shop`: the API, a worker and streams for an application, in one command; on SQLite and on Redis."""

import contextlib
import itertools
import json
import pathlib
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from conftest import DATABASES, PATIENCE, Place, binary, free_port, until


class Shop(Place):
    """A server with its worker."""

    def open(self, *options, **env):
        port = free_port()
        self.api = f"http://127.0.0.1:{port}"
        where = ["-b", self.store] if self.store else []
        self.process = self.start(binary(), "-A", "shop", *where, "--python", sys.executable, "serve",
                                  "--bind", f"127.0.0.1:{port}", *options, **env)  # fmt: skip

        def ready():
            assert self.process.process.poll() is None, self.process.text()
            with contextlib.suppress(OSError):
                return self.ask("GET", "/readyz")[0] == 200

        until(ready, "it does not come up")
        return self

    def ask(self, method, path, body=None, **headers):
        request = urllib.request.Request(self.api + path, method=method, headers=headers)
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def call(self, task, body):
        status, answer = self.ask("POST", f"/api/v1/call/{task}", body)
        assert status == 202, answer
        return json.loads(answer)["id"]

    def refusals(self, path, body):
        """Where the problems of a refused request are."""
        status, answer = self.ask("POST", path, body)
        assert status == 422, answer
        return sorted(error["at"] for error in json.loads(answer)["errors"])

    def result(self, task_id):
        def look():
            status, answer = self.ask("GET", f"/api/v1/tasks/{task_id}/result?wait=10")
            return json.loads(answer) if status == 200 else None

        return until(look, f"{task_id} does not end")

    def get(self, task, body):
        ended = self.result(self.call(task, body))
        assert ended["state"] == "SUCCESS", ended
        return ended["result"]

    def stream(self, task_id):
        """The whole stream of a task: it ends with the task."""
        _, text = self.ask("GET", f"/api/v1/tasks/{task_id}/events", Accept="text/event-stream")
        frames = [dict(line.split(": ", 1) for line in frame.splitlines() if not line.startswith(":"))
                  for frame in text.split("\n\n") if "data: " in frame]  # fmt: skip
        return [(frame["event"], json.loads(frame["data"])) for frame in frames]

    def begun(self, task_id):
        until(lambda: any(event == "token" for event, _ in self.log_of(task_id)), "it does not run")

    def tree(self):
        """The processes below the server, by depth."""
        levels = [[self.process.process.pid]]
        while levels[-1]:
            lists = itertools.chain.from_iterable(
                pathlib.Path(f"/proc/{pid}/task").glob("*/children") for pid in levels[-1])  # fmt: skip
            levels.append([int(child) for found in lists for child in found.read_text().split()])
        return levels[1:-1]


@pytest.fixture(scope="module", params=["sqlite", "redis"])
def shop(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    # The application names no store, and neither does anybody else.
    store = ""
    if request.param == "redis":
        store = f"redis://127.0.0.1:{request.getfixturevalue('redis_port')}/{next(DATABASES)}"
    shop = Shop(folder, "", store)
    try:
        yield shop.open("-c", 2, "-Q", "celery,slow", "-n", "mine@test")
    finally:
        shop.end()


def test_a_task_is_called_and_its_result_is_there(shop):
    assert shop.get("shop.add", {"x": 3}) == 5
    assert shop.get("shop%2Fjoin%20%7Ball%7D", ["a", "b", "c"]) == "a-b-c"
    assert shop.get("shop.unchecked", {"x": "anything"}) == "anything"
    # Sent to the queue that the task names, and the worker consumes that.
    task_id = shop.call("shop.count", {"items": [{"name": "egg"}], "when": "2026-11-26"})
    assert shop.result(task_id)["result"] == 1
    assert json.loads(shop.ask("GET", f"/api/v1/tasks/{task_id}")[1])["queue"] == "slow"
    if not shop.store:
        assert (shop.folder / "celeriac.db").exists()


def test_a_stream_has_what_the_task_reports(shop):
    task_id = shop.call("shop.report", {"topic": "bees", "depth": "deep"})
    events = shop.stream(task_id)
    assert [event for event, _ in events] == ["state", "progress", "token", "found", "end"], events
    assert events[1][1] == {"done": 1, "total": 2, "topic": "bees"}
    assert events[2][1] == {"text": "hello"} and events[3][1] == {"depth": "deep"}
    assert events[4][1]["result"] == "BEES"


def test_a_task_that_runs_is_stopped(shop):
    task_id = shop.call("shop.endless", {})
    shop.begun(task_id)
    status, answer = shop.ask("POST", f"/api/v1/tasks/{task_id}/revoke", {"terminate": True})
    assert status == 200 and json.loads(answer)["revoked"] == "running", answer
    assert shop.stream(task_id)[-1][1]["state"] == "REVOKED"
    assert shop.result(task_id)["state"] == "REVOKED"


def test_what_does_not_fit_is_refused_before_it_is_sent(shop):
    assert shop.refusals("/api/v1/call/shop.add", {"y": "two", "z": 1}) == ["/x", "/y", "/z"]
    assert shop.refusals("/api/v1/call/shop.report", {"topic": "x", "depth": "shallow"}) == ["/depth"]
    assert shop.refusals("/api/v1/tasks", {"task": "shop.add", "args": [1, 2, 3], "kwargs": {"z": 1}}) == [
        "/args/2", "/kwargs/z"]  # fmt: skip
    # Types are a matter of those who see them: Celery's own client does not look at them.
    status, _ = shop.ask("POST", "/api/v1/tasks", {"task": "shop.add", "args": ["a", "b"]})
    assert status == 202


def test_tasks_are_operations(shop):
    document = shop.fetch("/openapi.json")
    add = document["paths"]["/api/v1/call/shop.add"]["post"]
    assert (add["summary"], add["description"]) == ("Adds two numbers.", "Both are *whole*.")
    assert add["requestBody"]["content"]["application/json"]["schema"] == {
        "type": "object", "required": ["x"], "additionalProperties": False,
        "properties": {"x": {"type": "integer"}, "y": {"type": "integer", "default": 2}}}  # fmt: skip
    assert "/api/v1/call/shop%2Fjoin%20%7Ball%7D" in document["paths"]
    known = {item["name"]: item for item in shop.fetch("/api/v1/registry")["items"]}
    assert known["shop.add"]["workers"] == ["mine@test"]
    item = known["shop.count"]["description"]["parameters"][0]["schema"]["items"]
    assert item["properties"]["price"]["type"] == "number"


def test_the_options_of_the_worker_reach_it(redis_port, tmp_path):
    shop = Shop(tmp_path, "", f"redis://127.0.0.1:{redis_port}/{next(DATABASES)}")
    try:
        shop.open("-P", "threads", "-c", 3, "-l", "info")
        assert shop.get("shop.add", {"x": 1, "y": 1}) == 2
        assert "concurrency: 3 (threads)" in shop.process.text()
    finally:
        shop.end()


def test_the_process_tree_is_as_small_as_can_be_and_ends_as_a_whole(tmp_path):
    shop = Shop(tmp_path, "", "")
    done = tmp_path / "done"
    try:
        shop.open("-c", 2, SHOP_THREAD=str(done))
        # The worker, the process that has imported the application for it, and those that run tasks. The one that the
        # server has asked is gone, be it that the application would keep it.
        until(lambda: [len(level) for level in shop.tree()] == [1, 1, 2], f"it is {shop.tree()}")
        pids = list(itertools.chain.from_iterable(shop.tree()))
        task_id = shop.call("shop.hold", {"path": str(done)})
        shop.begun(task_id)
        shop.process.process.send_signal(signal.SIGTERM)
        # What runs finishes first.
        done.touch()
        assert shop.process.process.wait(PATIENCE) == 0
        until(lambda: not any(pathlib.Path(f"/proc/{pid}").exists() for pid in pids), "a process is left behind")
        shop.open("--roles", "web")
        ended = shop.result(task_id)
        assert ended["state"] == "SUCCESS" and ended["result"] in pids
    finally:
        shop.end()


@pytest.mark.parametrize("arguments, expected", [
    (["-A", "absent", "serve"], ["No module named 'absent'"]),
    (["-A", "broken", "serve"], ["half-way", "broken.py", "cannot load the application broken"]),
    (["-A", "shop", "serve", "-P", "gevent"], ["--pool gevent", "prefork"]),
    (["-A", "shop", "serve", "-E"], ["--task-events"]),
    (["serve", "-P", "prefork"], ["--pool", "-A"]),
    (["-A", "shop", "serve", "--detach"], ["--detach"]),
])  # fmt: skip
def test_what_cannot_work_is_refused_at_the_start(tmp_path, arguments, expected):
    (tmp_path / "broken.py").write_text("raise RuntimeError('half-way')\n")
    shop = Shop(tmp_path, "", "")
    process = shop.start(binary(), "--python", sys.executable, *arguments, "--bind", "127.0.0.1:0")
    try:
        assert process.process.wait(PATIENCE) == 2, process.text()
    except subprocess.TimeoutExpired:
        pytest.fail(process.text())
    finally:
        shop.end()
    for part in expected:
        assert part in process.text(), process.text()
    assert "serves on" not in process.text()
