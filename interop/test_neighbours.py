"""Beside a Python worker that restores what is two seconds old, tasks five times as long run once, whoever is killed."""

import collections
import json
import time

import pytest

from conftest import PATIENCE, until

pytestmark = pytest.mark.celeriac

TASKS = 100
SECONDS = 10
LEASE = 1
# What a task is promised whose worker was killed: to run elsewhere so long after the end of its lease.
PROMISED = 5


def parted(record):
    """Event and data of a record: when, how long the name of the event is, that name and the data."""
    _, length, rest = record.decode().split(" ", 2)
    return rest[:int(length)], rest[int(length):]


def began(place):
    """The starts, as the tasks have left them in their logs: of each id, run, process and time, in order."""
    feed = collections.defaultdict(list)
    for key in place.redis.scan_iter("celeriac:l:*", count=1000):
        for record in place.redis.lrange(key, 0, -1):
            event, data = parted(record)
            if event == "began":
                at, data = record.split(b" ", 1)[0], json.loads(data)
                feed[key.decode().removeprefix("celeriac:l:")].append((data["run"], data["pid"], int(at) / 1e6))
    return feed


def test_a_visibility_timeout_of_two_seconds_hurts_nobody(place):
    settings = {"visibility_timeout": LEASE, "worker_heartbeat_interval": 1}
    doomed = place.rust_worker(node="doomed@interop", concurrency=10, **settings)
    heir = place.rust_worker(node="heir@interop", concurrency=30, **settings)
    place.python_worker(app="impatient")
    for node in ("doomed@interop", "heir@interop", "py@interop"):
        place.reachable(node)
    results = [place.send("rust.stamped", SECONDS) for _ in range(TASKS)]
    pythons = [place.send("py.add", n, n) for n in range(20)]
    assert [result.get(timeout=PATIENCE) for result in pythons] == [2 * n for n in range(20)]

    # In the midst of it: all have begun, those before the last twenty have ended, and the heir has room for the others'.
    metas = [f"celery-task-meta-{result.id}" for result in results]
    until(lambda: place.redis.exists(*metas) >= TASKS - 20 and len(began(place)) == TASKS, "all should begin")
    killed_at = time.time()
    doomed.kill()
    values = collections.Counter(result.get(timeout=PATIENCE) for result in results)

    starts = began(place)
    assert len(starts) == TASKS
    again = {id: runs for id, runs in starts.items() if len(runs) > 1}
    held = [id for id, runs in starts.items()
            if any(pid == doomed.pid and at > killed_at - SECONDS for _, pid, at in runs)]
    assert again, "the killed worker held some"
    assert set(again) == set(held), "those that the killed worker ran, and no others, ran twice"
    took = []
    for runs in again.values():
        (_, first, _), (_, second, at) = runs
        assert (first, second) == (doomed.pid, heir.pid)
        took.append(at - killed_at - LEASE)
    print(f"{len(again)} of {TASKS} ran again, {min(took):.2f} to {max(took):.2f} s after the end of their leases")
    assert max(took) <= PROMISED, took
    assert values == {1: TASKS - len(again), 2: len(again)}
    until(lambda: place.redis.hlen("unacked") == 0, "all should be settled")
    assert place.redis.zcard("unacked_index") == 0
    # Each ended once: its log says so.
    ends = [sum(parted(record)[0] == "end" for record in place.redis.lrange(f"celeriac:l:{result.id}", 0, -1))
            for result in results]
    assert ends == [1] * TASKS
