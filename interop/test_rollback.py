"""Back to Celery on any day: what celeriac's workers held or never took, Python's workers run."""

import time

import pytest

from conftest import CELERY, PATIENCE, until
from proj import VISIBILITY_TIMEOUT

pytestmark = pytest.mark.celeriac


def held(place):
    return place.redis.hlen("unacked")


def fill(place, worker_slots=2, more=3):
    """A worker that runs as much as it can, with more waiting; none of it can end before the worker does."""
    worker = place.rust_worker(concurrency=worker_slots, worker_shutdown_timeout=0.2, worker_revoke_grace=0.2)
    running = [place.send("rust.slow", 3600 if n < worker_slots else 0, f"task {n}") for n in range(worker_slots)]
    for n in range(worker_slots):
        place.noted(f"task {n}")
    waiting = [place.send("rust.add", n, n) for n in range(more)]
    return worker, running, waiting


def test_what_waits_is_python_s(place):
    worker, _, waiting = fill(place)
    worker.kill()
    place.python_worker(queues="rust", app="reference")
    assert [result.get(timeout=PATIENCE) for result in waiting] == [0, 2, 4]


def test_a_worker_holds_in_celery_s_own_books(place):
    worker, running, waiting = fill(place)
    assert held(place) == len(running), "no more than it runs"
    assert place.redis.zcard("unacked_index") == len(running)
    assert place.redis.llen("rust") == len(waiting)
    worker.kill()


def test_what_a_killed_worker_ran_is_restored_by_python(place):
    # Long enough to be killed in the midst of it, and less than after what Python restores a message.
    worker = place.rust_worker(concurrency=1)
    result = place.send("rust.slow", 2, "twice")
    place.noted("twice")
    worker.kill()
    assert held(place) == 1
    if CELERY < (5, 7):
        # It restores when it starts, and then every hundred seconds, which no option changes.
        (_, since), = place.redis.zrange("unacked_index", 0, -1, withscores=True)
        until(lambda: time.time() > since + VISIBILITY_TIMEOUT, "time should pass")
    place.python_worker(queues="rust", app="reference")
    assert result.get(timeout=PATIENCE) == "twice"
    assert place.notes().count("twice") == 2
    until(lambda: held(place) == 0, "Python should have settled it")


def test_a_running_task_is_not_restored_by_a_neighbour(place):
    # The neighbour in Python restores what is older than three seconds, which this task is while it runs.
    place.rust_worker(concurrency=1)
    place.python_worker(queues="other", app="reference")
    result = place.send("rust.slow", 10, "once")
    assert result.get(timeout=PATIENCE) == "once"
    assert place.notes().count("once") == 1


def test_a_worker_that_shuts_down_hands_back_at_once(place):
    worker, running, waiting = fill(place)
    assert worker.stop() == 0
    assert held(place) == 0 and place.redis.zcard("unacked_index") == 0
    assert place.redis.llen("rust") == len(running) + len(waiting)
    place.python_worker(queues="rust", app="reference", concurrency=4)
    assert [result.get(timeout=PATIENCE) for result in waiting] == [0, 2, 4]


def test_a_chord_begun_here_is_ended_there(place):
    from celery import chord

    worker = place.rust_worker(concurrency=4)
    header = [place.sig("rust.add", 1, 1), place.sig("rust.add", 2, 2), place.sig("rust.add", 3, 3)]
    # The last part of the header waits for a worker that consumes from elsewhere.
    header[-1].set(queue="elsewhere")
    body = place.app.signature("rust.xsum", queue="elsewhere")
    result = chord(header, body, app=place.app).apply_async()
    until(lambda: sum(part.ready() for part in result.parent.results) == 2, "two parts should be counted")
    worker.kill()
    place.python_worker(queues="elsewhere", app="reference")
    assert result.get(timeout=PATIENCE) == 12
    # And the other way round: begun by Python, ended here.
    place.rust_worker(queues="rust", node="again@interop")
    header[-1].set(queue="rust")
    body.set(queue="rust")
    header[0].set(queue="elsewhere")
    assert chord(header, body, app=place.app).apply_async().get(timeout=PATIENCE) == 12


def test_no_key_of_celery_s_is_left_in_a_form_it_does_not_know(place):
    place.rust_worker()
    for n in range(5):
        assert place.get("rust.add", n, n) == 2 * n
    foreign = [key.decode() for key in place.redis.keys("*") if not key.startswith(b"celeriac:")]
    known = ("celery-task-meta-", "_kombu.binding", "unacked")
    assert all(key.startswith(known) for key in foreign), foreign
