"""The HTTP API beside plain Celery: it sees the tasks that Python sends and that Python runs."""

import json
import urllib.error
import urllib.request
import uuid

import pytest

from conftest import CELERIAC, PATIENCE, PYTHON_NODE, free_port, until

pytestmark = pytest.mark.celeriac


class Api:
    """`celeriac serve` with no worker of its own."""

    def __init__(self, place):
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        config = place.config("serve", {})
        place.start("serve", [CELERIAC, "-b", place.url, "--config", config, "serve", "--roles", "web", "--bind",
                              f"127.0.0.1:{port}"])
        until(lambda: self.call("/livez"), "the server does not answer")

    def call(self, path, body=None):
        request = urllib.request.Request(self.url + path, data=json.dumps(body).encode() if body is not None else None)
        request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return json.loads(answer.read() or b"null")
        except (urllib.error.HTTPError, urllib.error.URLError):
            return None

    def task(self, task_id):
        return self.call(f"/api/v1/tasks/{task_id}")

    def stream(self, task_id):
        """The records of a task's stream, until it ends."""
        request = urllib.request.Request(f"{self.url}/api/v1/tasks/{task_id}/events")
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            frames = answer.read().decode().split("\n\n")
        fields = [dict(line.split(": ", 1) for line in frame.split("\n") if ": " in line) for frame in frames]
        return [(frame["event"], json.loads(frame["data"])) for frame in fields if "data" in frame]


@pytest.fixture(scope="module")
def api(shared):
    return Api(shared)


def test_python_workers_are_listed(api, python):
    names = lambda: [worker["name"] for worker in api.call("/api/v1/workers")["items"]]
    until(lambda: PYTHON_NODE in names(), "the Python worker is not listed")


def observed(api, place):
    """Waits until Python's worker tells of its tasks, as the server asks it to."""
    def look():
        task_id = place.send("py.add", 1, 1).id
        return until(lambda: place.app.AsyncResult(task_id).ready(), "not run") and api.task(task_id)
    until(look, "the server does not hear of tasks")


def test_what_python_sends_and_runs_is_seen(api, python):
    observed(api, python)
    good, bad = python.send("py.add", 2, 3), python.send("py.fail", "boom")
    shown = until(lambda: (view := api.task(good.id)) and view["state"] == "SUCCESS" and view["phase"] == "settled" and view,
                  "the task is not seen to its end")
    assert (shown["task"], shown["worker"], shown["result"]) == ("py.add", PYTHON_NODE, 5)
    assert shown["times"]["finished"] and not shown["waits"]
    shown = until(lambda: (view := api.task(bad.id)) and view["state"] == "FAILURE" and view, "the failure is not seen")
    assert "boom" in json.dumps(shown["error"])
    listed = api.call("/api/v1/tasks?task=py.add")["items"]
    assert good.id in [task["id"] for task in listed]


def test_what_python_sends_is_seen_while_nobody_takes_it(api, shared):
    sent = shared.send("py.add", 2, 3, queue="nobody-consumes-this")
    # A queue that nobody here has heard of is looked for once a second.
    shown = until(lambda: api.task(sent.id), "the task is not seen")
    assert (shown["task"], shown["state"], shown["phase"], shown["queue"]) == ("py.add", "PENDING", "queued", "nobody-consumes-this")
    assert shown["args"] == "(2, 3)"


def test_a_result_of_which_nobody_told_ends_its_stream(api, shared):
    task_id = str(uuid.uuid4())
    shared.app.backend.store_result(task_id, 5, "SUCCESS")
    name, end = api.stream(task_id)[-1]
    assert (name, end["state"], end["result"]) == ("end", "SUCCESS", 5)


def test_what_the_api_sends_python_runs_and_the_stream_tells(api, python):
    observed(api, python)
    # As long as it takes for the worker to tell that it has begun: its result comes by another way.
    sent = api.call("/api/v1/tasks", {"task": "py.slow", "args": [3, "watched"]})
    events = api.stream(sent["id"])
    assert events[-1] == ("end", {"state": "SUCCESS", "result": "watched"})
    assert [data["state"] for event, data in events if event == "state"] == ["STARTED"]
    assert python.app.AsyncResult(sent["id"]).get(timeout=PATIENCE) == "watched"
