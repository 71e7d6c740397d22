"""The pools that run many tasks in one process: `asyncio` and `threads`."""

import json
import os
import sys

import pytest
from celery import chain, chord, group
from celery.exceptions import TaskRevokedError, TimeLimitExceeded, WorkerLostError

from conftest import CELERIAC, PATIENCE, open_place, until

pytestmark = pytest.mark.celeriac
NODE = "crowd@interop"
# Leases that are shorter than a test blocks a loop for, and stops that a test can wait for.
SETTINGS = "visibility_timeout = 2\nworker_restore_interval = 0.5\nworker_revoke_grace = 0.5\n"


class Crowd:
    def __init__(self, place):
        self.place = place
        sys.modules.pop("pycrowd", None)
        os.environ["INTEROP_REDIS"] = place.url
        self.tasks = __import__("pycrowd")
        self.app = self.tasks.app
        self.app.set_current()

    def start(self, pool, concurrency):
        (self.place.folder / "celeriac.toml").write_text(SETTINGS)
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


@pytest.fixture(scope="module")
def prefork(server, tmp_path_factory, request):
    yield from opened(server, tmp_path_factory, request, "prefork", 2)


@pytest.fixture(params=["loop", "threads"])
def either(request):
    return used(request.getfixturevalue(request.param))


@pytest.fixture(params=["loop", "threads", "prefork"])
def each(request):
    return used(request.getfixturevalue(request.param))


def used(crowd):
    os.environ["INTEROP_NOTES"] = str(crowd.place.notes_file)
    crowd.app.set_current()
    return crowd


@pytest.fixture
def app(loop):
    return used(loop)


def get(result):
    return result.get(timeout=PATIENCE)


def processes(crowd):
    return crowd.app.control.inspect(destination=[NODE], timeout=10).stats()[NODE]["pool"]["processes"]


def task(crowd, name):
    """The task of that name, and where there is one, the kind of it that is for this pool."""
    is_loop = "-P asyncio" in " ".join(map(str, crowd.worker.process.args))
    return getattr(crowd.tasks, f"{name}_async" if is_loop else name)


def log_of(crowd, result):
    """The records of a task's log when it has ended, as event and data."""
    told = crowd.place.celeriac("--json", "events", "--follow", result.id)
    assert told.returncode == 0, told
    records = [json.loads(line) for line in told.stdout.splitlines()]
    return [(record["event"], record["data"]) for record in records]


def test_many_at_once(app):
    """Each waits until all are there."""
    results = group(app.tasks.meet.s("many", 500) for _ in range(500))()
    assert get(results) == [500] * 500
    assert len(processes(app)) == 1


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


def test_coroutines_call_each_other_as_functions(app):
    assert get(app.tasks.steps_down.delay(2)) == [2, 1, 0]
    assert get(app.tasks.runs_a_loop.delay()) == 0.01


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


def test_a_loop_that_is_blocked_is_told_of_and_costs_no_lease(app, tmp_path):
    """Leases are much shorter than that."""
    mark = tmp_path / "mark"
    other = app.tasks.holds.delay("beside", str(mark))
    app.place.noted("begin beside")
    assert get(app.tasks.block.delay(3)) == "blocked"
    mark.touch()
    get(other)
    until(lambda: "blocked by pycrowd.block" in app.worker.text(), "there is no warning")
    assert app.place.notes().count("begin beside") == 1 and "lease lost" not in app.worker.text()


def terminate(crowd, result):
    """Revokes what runs; returns when its caller has the answer."""
    result.revoke(terminate=True)
    with pytest.raises(TaskRevokedError, match="terminated"):
        get(result)


def test_a_revoked_task_that_swallows_exceptions_streams_no_more(each, request):
    word = f"stream {request.node.callspec.id}"
    result = task(each, "streams").delay(word)
    each.place.noted(f"begin {word}")
    terminate(each, result)
    log = log_of(each, result)
    text = "".join(data["text"] for event, data in log if event == "token")
    # The last piece may be cut off with its process.
    numbers = [int(number) for number in text.split(" ")[:-1]]
    assert len(numbers) > 5 and numbers == list(range(len(numbers)))
    # And it is not run again.
    assert "gone before the task began" not in each.worker.text()


def test_a_revoked_task_is_told_at_once(either, request):
    word = f"asks {request.node.callspec.id}"
    result = task(either, "asks").delay(word)
    either.place.noted(f"begin {word}")
    terminate(either, result)
    either.place.noted(f"seen {word}")
    either.place.noted(f"stopped {word} True")


def test_a_coroutine_that_swallows_its_cancellation_is_cancelled_again(app, tmp_path):
    """For its revocation, at the end of its grace, and after that."""
    mark = tmp_path / "mark"
    # As long as this runs, so does the process.
    other = app.tasks.holds.delay("beside stubborn", str(mark))
    result = app.tasks.stubborn.delay("stubborn", 2)
    app.place.noted("begin beside stubborn")
    app.place.noted("begin stubborn")
    terminate(app, result)
    app.place.noted("stopped stubborn")
    mark.touch()
    get(other)


def test_a_coroutine_that_blocks_the_loop_is_interrupted(app):
    before = processes(app)
    result = app.tasks.block_for_ever.delay("for ever")
    app.place.noted("begin for ever")
    terminate(app, result)
    app.place.noted("stopped for ever")
    assert get(app.tasks.nap.delay(0)) == 0 and before == processes(app)
    assert get(app.tasks.soft_block.apply_async(soft_time_limit=1)) == "cleaned up"


def test_a_thread_that_waits_at_a_socket_is_stopped(threads):
    result = threads.tasks.reads.delay("reader")
    threads.place.noted("begin reader")
    terminate(threads, result)
    threads.place.noted("stopped reader")
    assert "went on reader" not in threads.place.notes()


def test_a_task_that_will_not_stop_costs_its_process_and_no_other_task(either, tmp_path, request):
    mark, word = tmp_path / "mark", f"other {request.node.callspec.id}"
    [before] = processes(either)
    holds = either.tasks.holds if task(either, "asks").name.endswith("_async") else either.tasks.holds_thread
    other = holds.delay(word, str(mark))
    either.place.noted(f"begin {word}")
    result = either.tasks.sleeps.delay(f"sleeps {word}")
    either.place.noted(f"begin sleeps {word}")
    terminate(either, result)
    until(lambda: get(either.tasks.pid.delay()) != before, "new tasks go on to the process that is given up")
    mark.touch()
    assert get(other) == before
    until(lambda: before not in processes(either), "the process that is given up does not end")
    assert either.place.notes().count(f"begin {word}") == 1


def test_a_process_in_which_nothing_moves_is_killed_and_others_run_again(either, tmp_path, request):
    mark, word = tmp_path / "mark", f"again {request.node.callspec.id}"
    [before] = processes(either)
    holds = either.tasks.holds if task(either, "asks").name.endswith("_async") else either.tasks.holds_thread
    late = holds.delay(word, str(mark))
    either.place.noted(f"begin {word}")
    early = either.tasks.spin.delay(f"early {word}")
    either.place.noted(f"begin early {word}")
    result = either.tasks.hogs.delay(f"hogs {word}")
    either.place.noted(f"begin hogs {word}")
    terminate(either, result)
    with pytest.raises(WorkerLostError, match="held up"):
        get(early)
    mark.touch()
    assert get(late) != before
    assert either.place.notes().count(f"begin {word}") == 2


def test_an_exit_ends_its_task_alone(either):
    before = processes(either)
    with pytest.raises(WorkerLostError, match="SystemExit"):
        get(task(either, "exits").delay())
    assert before == processes(either)


def test_a_lost_process_costs_what_it_ran(either):
    with pytest.raises(WorkerLostError):
        get(either.tasks.die.delay())
    assert get(either.tasks.plain.delay(1, 1)) == 2
