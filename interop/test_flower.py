"""Flower's pages and buttons, with a worker of ours in them."""

import json
import os
import sys
import urllib.error
import urllib.parse
import urllib.request

import pytest

from conftest import PATIENCE, RUST_NODE, free_port, until

pytest.importorskip("flower")


class Flower:
    """Flower for an application that knows the tasks of both sides, as limits are set by name only for tasks it knows."""

    def __init__(self, place):
        self.port = free_port()
        os.environ["FLOWER_UNAUTHENTICATED_API"] = "true"
        self.child = place.start("flower", [sys.executable, "-m", "celery", "-A", "reference", "flower",
                                            f"--port={self.port}", "--address=127.0.0.1", "--inspect_timeout=5000"])
        until(lambda: self.get("/healthcheck")[0] == 200, "Flower does not start")

    def get(self, path, **form):
        """Asks for a page, or posts a form; the status and the text."""
        data = urllib.parse.urlencode(form).encode() if form else None
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data=data)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def page(self, path):
        status, text = self.get(path)
        assert status == 200, (path, status, text[-2000:])
        return text

    def json(self, path):
        return json.loads(self.page(path))

    def press(self, path, **form):
        """What a button of a page does."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", method="POST",
                                         data=urllib.parse.urlencode(form).encode())
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()


@pytest.fixture(scope="module")
def started(shared, rust_side):
    shared.reachable(RUST_NODE)
    flower = Flower(shared)
    # Flower knows a worker when it has heard of it and asked it.
    until(lambda: RUST_NODE in (found := flower.json("/api/workers?refresh=1")) and "stats" in found[RUST_NODE],
          "Flower should know the worker")
    return flower


@pytest.fixture
def flower(rust, started):
    yield rust, started


def test_the_worker_is_listed_as_online(flower):
    _, flower = flower

    def listed():
        return {row["hostname"]: row for row in json.loads(flower.page("/workers?json=1"))["data"]}

    row = until(lambda: (found := listed().get(RUST_NODE)) and found["status"] and found.get("sw_ident") and found,
                "the worker should be online")
    assert row["pid"] > 0 and len(row["loadavg"]) == 3 and row["active"] == 0
    assert RUST_NODE in flower.page("/workers")
    assert flower.json("/api/workers?status=1") == {RUST_NODE: True}


def test_the_worker_has_a_page(flower):
    place, flower = flower
    running = place.send("rust.slow", 3600, "on the page")
    place.noted("on the page")
    flower.page(f"/api/workers?refresh=1&workername={RUST_NODE}")

    def shown():
        page = flower.page(f"/worker/{RUST_NODE}")
        return page if running.id in page else None

    page = until(shown, "the page should show what runs")
    for piece in ("rust.add", "Max concurrency", "rust.slow", "task_default_queue", "maxrss"):
        assert piece in page, piece
    known = flower.json(f"/api/workers?workername={RUST_NODE}")[RUST_NODE]
    assert [queue["name"] for queue in known["active_queues"]] == ["rust"]
    assert known["stats"]["pool"]["max-concurrency"] == 4
    place.app.control.revoke(running.id, terminate=True)
    running.get(timeout=PATIENCE, propagate=False)


def state_of(flower, task_id):
    status, text = flower.get(f"/api/task/info/{task_id}")
    return json.loads(text) if status == 200 else {}


def test_tasks_are_followed(flower):
    place, flower = flower
    result = place.send("rust.add", 20, 3)
    result.get(timeout=PATIENCE)
    until(lambda: state_of(flower, result.id).get("state") == "SUCCESS", "Flower should see the end of the task")
    told = state_of(flower, result.id)
    assert (told["name"], told["args"], told["result"]) == ("rust.add", "(20, 3)", "23")
    assert told["worker"] == RUST_NODE and told["runtime"] > 0
    page = flower.page(f"/task/{result.id}")
    assert "rust.add" in page and "SUCCESS" in page
    failed = place.send("rust.fail", "boom")
    until(lambda: state_of(flower, failed.id).get("state") == "FAILURE", "Flower should see the failure")
    assert "ValueError" in flower.page(f"/task/{failed.id}")
    assert result.id in json.dumps(flower.json("/api/tasks")) and flower.page("/tasks")
    assert "rust.add" in flower.json("/api/task/types")["task-types"]


def test_queues_and_figures_have_pages(flower):
    place, flower = flower
    assert "rust" in flower.page("/broker")
    lengths = {queue["name"]: queue["messages"] for queue in flower.json("/api/queues/length")["active_queues"]}
    assert lengths["rust"] == 0
    assert f'worker="{RUST_NODE}"' in flower.page("/metrics")


def test_the_buttons_work(flower):
    place, flower = flower

    def pressed(path, **form):
        status, answer = flower.press(path, **form)
        assert status == 200, (path, status, answer)
        return answer["message"]

    assert "Growing" in pressed(f"/api/worker/pool/grow/{RUST_NODE}", n=1)
    assert "Shrinking" in pressed(f"/api/worker/pool/shrink/{RUST_NODE}", n=1)
    assert "more" in pressed(f"/api/worker/queue/add-consumer/{RUST_NODE}", queue="more")
    assert place.send("rust.add", 1, 2, queue="more").get(timeout=PATIENCE) == 3
    assert "more" in pressed(f"/api/worker/queue/cancel-consumer/{RUST_NODE}", queue="more")
    assert "successfully" in pressed("/api/task/rate-limit/rust.add", workername=RUST_NODE, ratelimit="1000/s")
    assert "successfully" in pressed("/api/task/timeout/rust.add", workername=RUST_NODE, soft=5, hard=10)
    running = place.send("rust.slow", 3600, "stopped by a button")
    place.noted("stopped by a button")
    assert "Revoked" in pressed(f"/api/task/revoke/{running.id}", terminate="true")
    running.get(timeout=PATIENCE, propagate=False)
    assert running.state == "REVOKED"
    for refused in ("pool/restart", "pool/autoscale"):
        status, answer = flower.press(f"/api/worker/{refused}/{RUST_NODE}", min=1, max=3)
        assert status == 403 and "not enabled" in answer, answer


def test_a_worker_is_shut_down_by_a_button(flower):
    place, flower = flower
    brief = place.rust_worker(node="brief@interop")
    place.reachable("brief@interop")
    until(lambda: "brief@interop" in flower.json("/api/workers?refresh=1"), "Flower should know the worker")
    status, _ = flower.press("/api/worker/shutdown/brief@interop")
    assert status == 200 and brief.process.wait(PATIENCE) == 0
    until(lambda: flower.json("/api/workers?status=1").get("brief@interop") is False, "the worker should be offline")
