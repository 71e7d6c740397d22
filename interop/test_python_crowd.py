"""The pools that run many tasks in one process: `asyncio` and `threads`."""

import os
import sys
import time

import pytest
from celery import chain, chord, group
from celery.exceptions import TaskRevokedError, TimeLimitExceeded, WorkerLostError

from conftest import CELERIAC, PATIENCE, open_place, until

pytestmark = pytest.mark.celeriac
NODE = "crowd@interop"


class Crowd:
    def __init__(self, place):
        self.place = place
        sys.modules.pop("pycrowd", None)
        os.environ["INTEROP_REDIS"] = place.url
        self.tasks = __import__("pycrowd")
        self.app = self.tasks.app
        self.app.set_current()

    def start(self, pool, concurrency):
        (self.place.folder / "celeriac.toml").write_text("worker_revoke_grace = 0.5\n")
        worker = self.place.start(NODE, [CELERIAC, "-A", "pycrowd", "--python", sys.executable, "worker", "-P", pool,
                                         "-c", concurrency, "-n", NODE, "-l", "info"])
        until(lambda: self.app.control.ping(destination=[NODE], timeout=1), "no answer to a ping")
        return worker


def opened(server, tmp_path_factory, request, pool, concurrency):
    places = open_place(server, tmp_path_factory, request, pool)
    place = next(places)
    os.environ["INTEROP_NOTES"] = str(place.notes_file)
    crowd = Crowd(place)
    crowd.worker = crowd.start(pool, concurrency)
    yield crowd
    assert crowd.worker.lives()
    crowd.app.close()
    next(places, None)


@pytest.fixture(scope="module")
def loop(server, tmp_path_factory, request):
    yield from opened(server, tmp_path_factory, request, "asyncio", 500)


@pytest.fixture(scope="module")
def threads(server, tmp_path_factory, request):
    yield from opened(server, tmp_path_factory, request, "threads", 8)


@pytest.fixture(params=["loop", "threads"])
def either(request):
    crowd = request.getfixturevalue(request.param)
    os.environ["INTEROP_NOTES"] = str(crowd.place.notes_file)
    crowd.app.set_current()
    return crowd


@pytest.fixture
def app(loop):
    os.environ["INTEROP_NOTES"] = str(loop.place.notes_file)
    loop.app.set_current()
    return loop


def get(result):
    return result.get(timeout=PATIENCE)


def test_many_at_once(app):
    began = time.monotonic()
    results = group(app.tasks.nap.s(1) for _ in range(500))()
    assert results.get(timeout=PATIENCE) == [1] * 500
    took = time.monotonic() - began
    print(f"500 tasks of 1 s took {took:.2f} s")
    # One after the other they would take 500 seconds.
    assert took < 60
    assert len(app.app.control.inspect(destination=[NODE], timeout=10).stats()[NODE]["pool"]["processes"]) == 1


def test_each_coroutine_has_its_own_request(app):
    results = [app.tasks.who.delay(0.3) for _ in range(20)]
    for result in results:
        found = get(result)
        assert found["first"] == found["second"] == result.id and found["thread"] == "MainThread"


def test_each_thread_has_its_own_request(either):
    results = [either.tasks.my_request.delay(0.2) for _ in range(16)]
    assert [get(result) for result in results] == [result.id for result in results]


def test_coroutines_retry_and_fail(app):
    assert get(app.tasks.retry.delay()) == 1
    result = app.tasks.fail.delay()
    with pytest.raises(ValueError, match="in a coroutine"):
        get(result)
    assert "raise ValueError" in result.traceback


def test_canvases(either):
    plain = either.tasks.plain
    assert get(chain(plain.s(1, 2), plain.s(3))()) == 6
    assert get(chord([plain.s(n, n) for n in range(5)], either.app.signature("pycrowd.total"))()) == 20


def test_coroutines_in_a_chain(app):
    assert get(chain(app.tasks.nap.s(0), app.tasks.plain.s(3))()) == 3


def test_a_soft_limit_cancels_a_coroutine(app):
    with pytest.raises(Exception) as caught:
        get(app.tasks.soft.delay())
    assert type(caught.value).__name__ == "SoftTimeLimitExceeded"
    app.place.noted("cleaned up")


def test_a_soft_limit_reaches_a_thread(either):
    assert get(either.tasks.soft_spin.delay()) == "cleaned up"


def test_hard_limits(either):
    with pytest.raises(TimeLimitExceeded):
        get(either.tasks.spin.apply_async(("hard",), time_limit=1))
    assert get(either.tasks.plain.delay(1, 1)) == 2


def test_revoked_coroutines_stop(app):
    result = app.tasks.long.delay("coroutine")
    app.place.noted("begin coroutine")
    result.revoke(terminate=True)
    with pytest.raises(TaskRevokedError):
        get(result)
    app.place.noted("stopped coroutine")


def test_revoked_threads_stop(either):
    results = [either.tasks.spin.delay(f"spin {n}") for n in range(8)]
    for n, result in enumerate(results):
        either.place.noted(f"begin spin {n}")
        result.revoke(terminate=True)
    for result in results:
        with pytest.raises(TaskRevokedError):
            get(result)
    # With eight seats this waits for one that a stopped task has left.
    assert get(either.tasks.plain.delay(1, 1)) == 2


def test_a_loop_that_is_blocked_is_told_of(app):
    assert get(app.tasks.block.delay(3)) == "blocked"
    until(lambda: "blocked by pycrowd.block" in app.worker.text(), "there is no warning")


def test_a_lost_process_costs_what_it_ran(either):
    with pytest.raises(WorkerLostError):
        get(either.tasks.die.delay())
    assert get(either.tasks.plain.delay(1, 1)) == 2
