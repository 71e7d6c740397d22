"""Remote control: Python's tools speak to our workers, ours to Python's, and workers to each other."""

import json
import re

import pytest
from celery.exceptions import TaskRevokedError

from conftest import CELERY, PATIENCE, PYTHON_NODE, RUST_NODE, until


@pytest.fixture
def asked(rust):
    """The place with a worker in Rust that can be reached."""
    rust.reachable(RUST_NODE)
    return rust


@pytest.fixture
def two(both):
    both.reachable(RUST_NODE)
    both.reachable(PYTHON_NODE)
    return both


def tell(place, command, node=RUST_NODE, **arguments):
    """What one worker answers."""
    replies = place.app.control.broadcast(command, arguments=arguments, destination=[node], reply=True, timeout=PATIENCE)
    assert len(replies) == 1 and list(replies[0]) == [node], replies
    return replies[0][node]


def test_a_ping_is_answered_by_whom_it_is_meant_for(two):
    ping = two.app.control.ping
    nodes = {node for reply in ping(timeout=2) for node in reply}
    assert nodes == {RUST_NODE, PYTHON_NODE}
    assert ping(destination=[RUST_NODE], timeout=PATIENCE) == [{RUST_NODE: {"ok": "pong"}}]
    assert ping(destination=["nobody@interop"], timeout=0.2) == []
    by_pattern = two.app.control.broadcast("ping", pattern="rust@*", matcher="glob", reply=True, limit=1, timeout=PATIENCE)
    assert by_pattern == [{RUST_NODE: {"ok": "pong"}}]
    by_regex = two.app.control.broadcast("ping", pattern=r"(rust|go)@\w+$", matcher="pcre", reply=True, limit=1,
                                         timeout=PATIENCE)
    assert by_regex == [{RUST_NODE: {"ok": "pong"}}]


def shape(value):
    """The form of an answer, without what differs from worker to worker."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__


def test_what_runs_is_told_in_celery_s_form(two):
    for side, node in [("rust", RUST_NODE), ("py", PYTHON_NODE)]:
        two.send(f"{side}.slow", PATIENCE, f"told {side}")
        two.noted(f"told {side}")
    inspect = two.app.control.inspect(timeout=PATIENCE, destination=[RUST_NODE, PYTHON_NODE])
    active = inspect.active()
    ours, theirs = active[RUST_NODE][0], active[PYTHON_NODE][0]
    assert list(ours) == list(theirs) and shape(ours) == shape(theirs)
    assert (ours["name"], ours["args"], ours["kwargs"]) == ("rust.slow", [PATIENCE, "told rust"], {})
    assert ours["hostname"] == RUST_NODE and ours["delivery_info"]["routing_key"] == "rust"
    assert inspect.active(safe=True)[RUST_NODE][0]["args"] == f"({PATIENCE}, 'told rust')"
    found = inspect.query_task(ours["id"], theirs["id"])
    assert found[RUST_NODE] == {ours["id"]: ["active", ours]}
    for waiting in (inspect.reserved(), inspect.scheduled()):
        assert waiting[RUST_NODE] == []
    for side, node in [("rust", RUST_NODE), ("py", PYTHON_NODE)]:
        two.app.control.revoke(active[node][0]["id"], terminate=True)
    until(lambda: not any(inspect.active().values()), "what runs should have been stopped")


def test_queues_are_told_in_celery_s_form(two):
    queues = two.app.control.inspect(timeout=PATIENCE, destination=[RUST_NODE, PYTHON_NODE]).active_queues()
    ours, theirs = queues[RUST_NODE][0], queues[PYTHON_NODE][0]
    assert (ours["name"], ours["exchange"]["name"], ours["routing_key"]) == ("rust", "rust", "rust")
    assert list(ours) == list(theirs) and shape(ours) == shape(theirs)


@pytest.mark.celeriac
def test_figures_have_all_of_celery_s(two):
    two.get("rust.add", 1, 1)
    stats = two.app.control.inspect(timeout=PATIENCE, destination=[RUST_NODE, PYTHON_NODE]).stats()
    ours, theirs = stats[RUST_NODE], stats[PYTHON_NODE]
    # Celery's order, and what is ours after it.
    assert list(ours)[:len(theirs)] == list(theirs)
    assert ours["total"]["rust.add"] >= 1 and ours["pool"]["max-concurrency"] == 4
    assert set(theirs["pool"]) <= set(ours["pool"]) and set(theirs["broker"]) <= set(ours["broker"])
    assert (ours["broker"]["port"], ours["broker"]["virtual_host"]) == (two.server.port, str(two.db))
    assert type(ours["clock"]) is type(theirs["clock"]) is str and ours["rusage"]["maxrss"] > 0


@pytest.mark.celeriac
def test_tasks_are_told(asked):
    registered = asked.app.control.inspect(timeout=PATIENCE, destination=[RUST_NODE]).registered()[RUST_NODE]
    assert "rust.add" in registered and not any(name.startswith("celery.") for name in registered)
    with_options = tell(asked, "registered", taskinfoitems=["serializer", "rate_limit"], builtins=True)
    assert "rust.add [serializer=json]" in with_options and "celery.map [serializer=json]" in with_options


@pytest.mark.celeriac
def test_the_rest_of_what_a_worker_tells(asked):
    assert tell(asked, "conf")["task_default_queue"] == "python"
    assert "software -> celeriac" in tell(asked, "report")["ok"]
    assert isinstance(tell(asked, "clock")["clock"], int)
    assert re.fullmatch(r"[\d.]+MB", tell(asked, "memsample"))
    assert tell(asked, "memdump", samples=10).startswith("- rss: ")
    assert tell(asked, "heartbeat") is None


def test_what_cannot_be_done_is_an_error(asked):
    for command, arguments in [
        ("no_such_command", {}), ("rate_limit", {"foo": 1}), ("enable_events", {"foo": 1}), ("report", {"foo": 1}),
        ("rate_limit", {"task_name": "rust.add", "rate_limit": "x/y"}), ("pool_restart", {}), ("autoscale", {"max": 3}),
        ("objgraph", {"num": 1, "max_depth": 1, "type": "Request"}),
    ]:
        assert list(tell(asked, command, **arguments)) == ["error"], command
    assert tell(asked, "rate_limit", task_name="nope", rate_limit="1/s") == {"error": "unknown task"}
    assert tell(asked, "time_limit", task_name="nope", hard=10, soft=5) == {"error": "unknown task"}
    assert tell(asked, "autoscale", max=3, min=1) == {"error": "ValueError('Autoscale not enabled')"}
    assert tell(asked, "ping", zzz=1) == {"ok": "pong"}


def test_limits_are_changed(asked):
    control = asked.app.control
    answered = control.rate_limit("rust.add", "1000/s", destination=[RUST_NODE], reply=True, timeout=PATIENCE)
    assert answered == [{RUST_NODE: {"ok": "new rate limit set successfully"}}]
    told = control.inspect(timeout=PATIENCE, destination=[RUST_NODE]).registered()[RUST_NODE]
    assert "rust.add [rate_limit=1000/s]" in told
    answered = control.rate_limit("rust.add", 0, destination=[RUST_NODE], reply=True, timeout=PATIENCE)
    assert answered == [{RUST_NODE: {"ok": "rate limit disabled successfully"}}]
    answered = control.time_limit("rust.add", soft=5, hard=10, destination=[RUST_NODE], reply=True, timeout=PATIENCE)
    assert answered == [{RUST_NODE: {"ok": "time limits set successfully"}}]


def test_the_pool_grows_and_shrinks(asked):
    assert tell(asked, "pool_grow", n=2) == {"ok": "pool will grow"}
    assert tell(asked, "pool_shrink", n=2) == {"ok": "pool will shrink"}


def test_queues_are_added_and_cancelled(asked):
    control = asked.app.control
    added = control.add_consumer("more", destination=[RUST_NODE], reply=True, timeout=PATIENCE)
    assert added == [{RUST_NODE: {"ok": "add consumer more"}}]
    assert asked.send("rust.add", 1, 2, queue="more").get(timeout=PATIENCE) == 3
    gone = control.cancel_consumer("more", destination=[RUST_NODE], reply=True, timeout=PATIENCE)
    assert gone == [{RUST_NODE: {"ok": "no longer consuming from more"}}]


def test_a_task_that_waits_for_its_time_is_revoked(asked):
    result = asked.send("rust.slow", 0, "revoked later", countdown=3600)
    # It has been met, wherever a worker keeps it.
    until(lambda: asked.redis.llen("rust") == 0, "a worker should take it")
    answered = asked.app.control.revoke(result.id, reply=True, timeout=PATIENCE, destination=[RUST_NODE])
    assert answered == [{RUST_NODE: {"ok": f"tasks {{{result.id!r}}} flagged as revoked"}}]
    if CELERY < (5, 7) and asked.reference:
        return
    with pytest.raises(TaskRevokedError, match="revoked"):
        result.get(timeout=PATIENCE)


def test_a_task_that_runs_is_terminated(asked):
    result = asked.send("rust.slow", 3600, "terminated")
    asked.noted("terminated")
    answered = asked.app.control.terminate(result.id, reply=True, timeout=PATIENCE, destination=[RUST_NODE])
    assert answered == [{RUST_NODE: {"ok": f"terminate: {result.id}"}}]
    with pytest.raises(TaskRevokedError, match="terminated"):
        result.get(timeout=PATIENCE)
    assert tell(asked, "revoke", task_id="abc", terminate=True, signal="SIGTERM") == {"ok": "terminate: tasks unknown"}
    several = tell(asked, "revoke", task_id=["abc", "def"], terminate=False, signal=None)
    assert several["ok"] in ("tasks {'abc', 'def'} flagged as revoked", "tasks {'def', 'abc'} flagged as revoked")


def test_what_is_revoked_before_it_comes_is_refused(asked):
    asked.app.control.revoke("foretold", reply=True, timeout=PATIENCE, destination=[RUST_NODE])
    assert "foretold" in tell(asked, "revoked")
    result = asked.send("rust.slow", 0, "foretold ran", task_id="foretold")
    with pytest.raises(TaskRevokedError, match="revoked"):
        result.get(timeout=PATIENCE)
    asked.get("rust.add", 1, 1)
    assert "foretold ran" not in asked.notes()


def stamped(place, name, team, seconds=0):
    call = place.sig("rust.slow", seconds, name)
    call.stamp(team=team)
    return call.apply_async()


def test_stamps_are_revoked(asked):
    running = stamped(asked, "red runs", "red", seconds=3600)
    asked.noted("red runs")
    flagged = tell(asked, "revoke_by_stamped_headers", headers={"team": "green"}, terminate=False, signal=None)
    assert flagged == {"ok": "headers {'team': 'green'} flagged as revoked, but not terminated"}
    none = tell(asked, "revoke_by_stamped_headers", headers={"team": ["blue", "pink"]}, terminate=True, signal="SIGTERM")
    assert none == {"ok": "headers {'team': ['blue', 'pink']} were not terminated"}
    done = tell(asked, "revoke_by_stamped_headers", headers={"team": ["red"]}, terminate=True, signal="SIGTERM")
    assert done == {"ok": "headers defaultdict(<class 'set'>, {'team': {'red'}}) revoked"}
    with pytest.raises(TaskRevokedError):
        running.get(timeout=PATIENCE)
    with pytest.raises(TaskRevokedError):
        stamped(asked, "green runs", "green").get(timeout=PATIENCE)
    assert stamped(asked, "grey runs", "grey").get(timeout=PATIENCE) == "grey runs"
    assert "green runs" not in asked.notes()


def test_a_worker_is_shut_down(place):
    worker = place.rust_worker()
    place.reachable(RUST_NODE)
    place.app.control.shutdown(destination=[RUST_NODE])
    assert worker.process.wait(PATIENCE) == 0


def test_celery_s_commands(two):
    status = two.celery("status", "-t", "5")
    assert re.search(rf"{RUST_NODE}: .*OK", status.stdout) and re.search(rf"{PYTHON_NODE}: .*OK", status.stdout)
    assert "2 nodes online" in status.stdout
    pong = two.celery("inspect", "ping", "-d", RUST_NODE, "-t", str(PATIENCE))
    assert f"{RUST_NODE}: OK" in pong.stdout and "pong" in pong.stdout
    for command in ("active", "reserved", "scheduled", "revoked", "registered", "stats", "conf", "active_queues", "report",
                    "clock"):
        ran = two.celery("inspect", command, "-d", RUST_NODE, "-t", str(PATIENCE))
        assert ran.returncode == 0 and f"{RUST_NODE}: OK" in ran.stdout, (command, ran.stdout, ran.stderr)
    grown = two.celery("control", "pool_grow", "1", "-d", RUST_NODE, "-t", str(PATIENCE))
    assert "pool will grow" in grown.stdout
    two.celery("control", "pool_shrink", "1", "-d", RUST_NODE, "-t", str(PATIENCE))


def documents(ran):
    return [json.loads(line) for line in ran.stdout.splitlines()]


@pytest.mark.celeriac
def test_celeriac_s_commands_reach_python_s_workers(two):
    def nodes():
        return {row["node"]: row for row in documents(two.celeriac("--json", "status", "-t", str(PATIENCE)))}

    listed = until(lambda: (found := nodes()) if len(nodes()) == 2 else None, "both workers should be listed")
    assert {node: row["status"] for node, row in listed.items()} == {RUST_NODE: "online", PYTHON_NODE: "online"}
    assert listed[PYTHON_NODE]["queues"] == "python" and listed[PYTHON_NODE]["concurrency"] == 2
    assert listed[PYTHON_NODE]["pid"] > 0 and listed[PYTHON_NODE]["version"].startswith("py-celery")
    answers = documents(two.celeriac("--json", "inspect", "ping", "-t", str(PATIENCE)))
    assert {answer["node"]: answer["reply"] for answer in answers} == {
        RUST_NODE: {"ok": "pong"}, PYTHON_NODE: {"ok": "pong"}}
    registered = documents(two.celeriac("--json", "inspect", "registered", "-d", PYTHON_NODE, "-t", str(PATIENCE)))
    assert "py.add" in registered[0]["reply"] and len(registered) == 1
    grown = two.celeriac("control", "pool_grow", "1", "-d", PYTHON_NODE, "-t", str(PATIENCE))
    assert grown.returncode == 0 and "pool will grow" in grown.stdout, grown.stderr
    refused = two.celeriac("control", "rate_limit", "nope", "1/s", "-d", PYTHON_NODE, "-t", str(PATIENCE))
    assert refused.returncode == 1 and "unknown task" in refused.stdout


@pytest.mark.celeriac
def test_no_queue_for_answers_is_left(two):
    two.celeriac("inspect", "ping", "-t", str(PATIENCE))
    until(lambda: not any(b"reply.celery.pidbox" in key for key in two.redis.keys("*.reply.celery.pidbox")
                          if two.redis.ttl(key) == -1 and not two.redis.zscore(
                              "celeriac:reply-queues", key.split(b".reply.")[0])),
          "each queue for answers should go by itself, or be known to who takes it away")
    bound = two.redis.smembers("_kombu.binding.reply.celery.pidbox")
    # Those of this process of Python's are its own affair.
    ours = {member.split(b"\x06\x16")[0] for member in bound} & set(two.redis.zrange("celeriac:reply-queues", 0, -1))
    assert not ours


def test_a_worker_that_starts_learns_what_is_revoked(place):
    place.rust_worker(node="old@interop")
    place.reachable("old@interop")
    tell(place, "revoke", node="old@interop", task_id=["told before"], terminate=False, signal=None)
    # Celery's worker says hello to ours, and ours to Celery's.
    place.python_worker("--loglevel", "debug", node="mingled@interop")
    place.reachable("mingled@interop")
    assert "told before" in tell(place, "revoked", node="mingled@interop")
    tell(place, "revoke", node="mingled@interop", task_id=["told by Python"], terminate=False, signal=None)
    place.rust_worker(node="new@interop")
    place.reachable("new@interop")
    until(lambda: "told by Python" in tell(place, "revoked", node="new@interop"), "the new worker should learn it")


def test_hello_is_answered(asked):
    told = tell(asked, "hello", from_node="some@interop", revoked=["brought"])
    assert "brought" in told["revoked"] and isinstance(told["clock"], int)
    assert tell(asked, "hello", from_node=RUST_NODE, revoked=[]) is None
    # The form of Celery 5.5.
    assert "mapped" in tell(asked, "hello", from_node="some@interop", revoked={"mapped": [1.0, "mapped"]})["revoked"] \
        or asked.reference
