"""Events: what our workers tell, as Celery's receivers and tools hear it."""

import json
import threading

import pytest
from celery.events.state import State

from conftest import PATIENCE, PYTHON_NODE, RUST_NODE, until


class Listener:
    """A receiver of Celery's, with the state it makes of what it hears."""

    def __init__(self, place):
        self.app, self.events, self.state = place.client(), [], State()
        self.connection = self.app.connection()
        self.receiver = self.app.events.Receiver(self.connection, handlers={"*": self.hear})
        self.stopping, self.listening = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self.listen, daemon=True)
        self.thread.start()
        # Subscribed, and woken the workers up.
        assert self.listening.wait(PATIENCE)

    def hear(self, event):
        self.events.append(event)
        # Celery's own state cannot take an event with an id.
        if not event["type"].startswith("worker-elect"):
            self.state.event(event)

    def listen(self):
        with self.receiver.consumer_context(wakeup=True) as (connection, _, _):
            self.listening.set()
            while not self.stopping.is_set():
                try:
                    connection.drain_events(timeout=0.1)
                except TimeoutError:
                    pass

    def of(self, task_id):
        return [event for event in self.events if event.get("uuid") == task_id]

    def types(self, task_id):
        return [event["type"] for event in self.of(task_id)]

    def until(self, task_id, last):
        """Waits for the last event of a task, and returns the types of all."""
        until(lambda: last in self.types(task_id), f"{task_id} should come to {last}: {self.types(task_id)}")
        return self.types(task_id)

    def stop(self):
        self.stopping.set()
        self.thread.join(PATIENCE)
        self.connection.release()
        self.app.close()


@pytest.fixture(scope="module")
def rust_side(shared):
    return shared.rust_worker("-E")


@pytest.fixture
def heard(rust):
    rust.reachable(RUST_NODE)
    listener = Listener(rust)
    # Its subscription is there when it hears of the worker.
    until(lambda: any(event["hostname"] == RUST_NODE for event in listener.events), "the worker should be heard of")
    yield rust, listener
    listener.stop()


def test_a_task_is_followed_from_its_receipt_to_its_end(heard):
    place, listener = heard
    result = place.send("rust.add", 2, 3)
    result.get(timeout=PATIENCE)
    assert listener.until(result.id, "task-succeeded") == ["task-received", "task-started", "task-succeeded"]
    received, started, succeeded = listener.of(result.id)
    assert (received["name"], received["args"], received["kwargs"]) == ("rust.add", "(2, 3)", "{}")
    assert (received["root_id"], received["parent_id"], received["retries"]) == (result.id, None, 0)
    assert succeeded["result"] == "5" and succeeded["runtime"] > 0
    for event in (received, started, succeeded):
        assert event["hostname"] == RUST_NODE and event["pid"] > 0
    assert received["clock"] < started["clock"] < succeeded["clock"]
    task = listener.state.tasks[result.id]
    assert (task.state, task.worker.hostname, task.name) == ("SUCCESS", RUST_NODE, "rust.add")


def test_ends_of_every_kind_are_told(heard):
    place, listener = heard
    failed = place.send("rust.fail", "boom")
    assert listener.until(failed.id, "task-failed") == ["task-received", "task-started", "task-failed"]
    told = listener.of(failed.id)[-1]
    assert told["exception"] == "ValueError('boom')" and "ValueError: boom" in told["traceback"]
    retried = place.send("rust.retry", 1, 0)
    # Celery's own may come after what the retry came to.
    listener.until(retried.id, "task-succeeded")
    assert listener.until(retried.id, "task-retried").count("task-retried") == 1
    assert next(event for event in listener.of(retried.id) if event["type"] == "task-retried")["exception"] == \
        "RuntimeError('try0')"
    import datetime
    past = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(seconds=1)
    expired = place.send("rust.add", 1, 1, expires=past)
    listener.until(expired.id, "task-revoked")
    told = listener.of(expired.id)[-1]
    assert (told["expired"], told["terminated"], told["signum"]) == (True, False, None)
    running = place.send("rust.slow", 3600, "told of")
    place.noted("told of")
    place.app.control.revoke(running.id, terminate=True)
    listener.until(running.id, "task-revoked")
    told = listener.of(running.id)[-1]
    assert (told["expired"], told["terminated"], told["signum"]) == (False, True, 15)
    assert listener.state.tasks[running.id].state == "REVOKED"


def test_a_heartbeat_tells_how_the_worker_stands(heard):
    place, listener = heard
    before = len([event for event in listener.events if event["type"] == "worker-heartbeat"])

    def more():
        beats = [event for event in listener.events if event["type"] == "worker-heartbeat" and "active" in event]
        return beats[-1] if len(beats) >= before + 2 else None

    beat = until(more, "heartbeats should come")
    assert beat["freq"] == 2.0 and len(beat["loadavg"]) == 3 and beat["processed"] >= 0
    assert all(beat[name] for name in ("sw_ident", "sw_ver", "sw_sys"))
    worker = listener.state.workers[RUST_NODE]
    assert worker.alive and worker.pid == beat["pid"]


def test_a_worker_tells_that_it_comes_and_goes(place):
    listener = Listener(place)
    worker = place.rust_worker(node="brief@interop")

    def types():
        return [event["type"] for event in listener.events if event["hostname"] == "brief@interop"]

    until(lambda: "worker-online" in types() or "worker-heartbeat" in types(), "the worker should be heard of")
    worker.stop()
    until(lambda: types()[-1:] == ["worker-offline"], f"the worker should say that it goes: {types()}")
    assert not listener.state.workers["brief@interop"].alive
    listener.stop()


def test_tasks_are_told_of_when_that_is_wanted(place):
    listener = Listener(place)
    place.rust_worker()
    place.reachable(RUST_NODE)
    control = place.app.control

    def told(command):
        return control.broadcast(command, destination=[RUST_NODE], reply=True, timeout=PATIENCE)[0][RUST_NODE]["ok"]

    silent = place.send("rust.add", 1, 1)
    silent.get(timeout=PATIENCE)
    assert told("enable_events") == "task events enabled"
    assert told("enable_events") == "task events already enabled"
    heard = place.send("rust.add", 1, 1)
    heard.get(timeout=PATIENCE)
    listener.until(heard.id, "task-succeeded")
    assert listener.of(silent.id) == []
    assert told("disable_events") == "task events disabled"
    assert told("disable_events") == "task events already disabled"
    listener.stop()


def test_a_worker_told_to_from_the_start_goes_on(heard):
    place, _ = heard
    told = place.app.control.broadcast("disable_events", destination=[RUST_NODE], reply=True, timeout=PATIENCE)
    assert told == [{RUST_NODE: {"ok": "task events already disabled"}}]
    listener = heard[1]
    result = place.send("rust.add", 1, 1)
    listener.until(result.id, "task-succeeded")


def test_celery_events_prints_them(heard):
    place, _ = heard
    import sys
    dump = place.start("dump", [sys.executable, "-u", "-m", "celery", "-A", "proj", "events", "--dump"])
    until(lambda: RUST_NODE in dump.text(), "the worker should be printed")
    result = place.send("rust.add", 20, 3)
    until(lambda: f"task succeeded: rust.add({result.id})" in dump.text() or
          (result.id in dump.text() and "task succeeded" in dump.text()), f"the task should be printed: {dump.text()}")
    dump.kill()


def test_python_s_workers_take_ours_for_one_of_theirs(both):
    both.reachable(RUST_NODE)
    both.reachable(PYTHON_NODE)
    python = next(child for child in both.children if child.name == PYTHON_NODE)
    # Gossip complains of who misses a heartbeat.
    seen = Listener(both)
    until(lambda: len([event for event in seen.events if event["hostname"] == RUST_NODE]) >= 4, "heartbeats should come")
    seen.stop()
    assert f"missed heartbeat from {RUST_NODE}" not in python.text()
    assert "substantial drift" not in python.text().lower()


class Peer:
    """A worker in name only, that votes when it is told to. A real one of Celery's ends when others are slower to stand
    than it is to count votes, which is no fault of theirs, and would make this test one of luck."""

    def __init__(self, place, node):
        self.app, self.node = place.client(), node
        self.connection = self.app.connection()
        self.dispatcher = self.app.events.Dispatcher(self.connection, hostname=node, buffer_while_offline=False)

    def tell(self, kind, clock, **fields):
        self.app.clock.value = clock - 1
        self.dispatcher.send(kind, **fields)

    def stop(self):
        self.dispatcher.close()
        self.connection.release()
        self.app.close()


@pytest.mark.celeriac
@pytest.mark.parametrize("clock,won", [(1, False), (10**9, True)], ids=["lost", "won"])
def test_an_election_is_won_by_one(place, clock, won):
    listener, peer = Listener(place), Peer(place, "peer@interop")
    place.rust_worker()
    place.reachable(RUST_NODE)

    def ours(kind):
        return [event for event in listener.events if event["type"] == kind and event["hostname"] == RUST_NODE]

    peer.tell("worker-online", 1, freq=60, active=0, processed=0, loadavg=[0, 0, 0], sw_ident="py-celery", sw_ver="1",
              sw_sys="Linux")
    until(lambda: ours("worker-heartbeat"), "the worker should be heard of")
    action = json.loads(json.dumps(place.sig("rust.callback", "value", "elected")))
    place.app.control.broadcast("election", arguments={"id": "e1", "topic": "task", "action": action})
    until(lambda: ours("worker-elect"), "the worker should stand")
    stands = ours("worker-elect")[0]
    assert (stands["id"], stands["topic"], stands["cver"]) == ("e1", "task", 1) and stands["action"] == action
    until(lambda: ours("worker-elect-ack"), "the worker should hear of itself")
    peer.tell("worker-elect", clock, id="e1", topic="task", action=action, cver=1)
    until(lambda: len(ours("worker-elect-ack")) == 2, "the worker should hear of its peer")
    peer.tell("worker-elect-ack", clock + 1, id="e1")
    if won:
        place.noted('rust.callback elected "value"')
    # Sent after what the winner sends.
    place.get("rust.slow", 0, "after the election")
    assert len([note for note in place.notes() if "rust.callback elected" in note]) == won
    listener.stop()
    peer.stop()
