"""The pools `threads` and `asyncio` on a store of celeriac's own: results, reports, steps and limits, as in `prefork`."""

import pytest
from billiard.exceptions import SoftTimeLimitExceeded
from celery import chain, chord
from celery.exceptions import TaskRevokedError, TimeLimitExceeded
from conftest import PATIENCE, Place, installed, opened, until


class Many:
    """A worker with one of the pools, and its application."""

    def __init__(self, place, pool):
        self.place, self.pool = place, pool

    def __getattr__(self, name):
        """A task, in the form that belongs to the pool."""
        found = getattr(self.place.proj, f"{name}_async", None) if self.pool == "asyncio" else None
        return found or getattr(self.place.proj, name)


def started(pool, folder, monkeypatch):
    installed(folder)
    place = Place(folder, "", f"sqlite://{folder}/celeriac.db")
    place.url = "celeriac+" + place.serve()
    monkeypatch.syspath_prepend(str(folder))
    for made in opened(folder, place.url, monkeypatch, place, module="many"):
        (folder / "celeriac.toml").write_text("worker_revoke_grace = 0.5\n")
        made.worker("-P", pool, app="many", concurrency=64)
        yield Many(made, pool)


@pytest.fixture(scope="module", params=["threads", "asyncio"])
def many(request, tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield from started(request.param, tmp_path_factory.mktemp(request.param), monkeypatch)


def get(result):
    return result.get(timeout=PATIENCE)


def log_of(many, result):
    return until(lambda: many.place.log_of(result.id, ended=True), "the log has no end")


def events(many, result, kind):
    return [data for event, data in log_of(many, result) if event == kind]


def test_results_and_canvases(many):
    add, total = many.add, many.total
    assert get(add.delay(2, 3)) == 5
    assert get(chain(add.s(1, 2), add.s(3))()) == 6
    assert get(chord([add.s(n, n) for n in range(20)], total.s())()) == 380
    result = many.failing.delay()
    with pytest.raises(ValueError, match="^no$"):
        get(result)
    assert "ValueError: no" in result.traceback
    assert get(many.flaky.delay()) == 2


def test_states_and_tasks_sent_from_a_task(many, tmp_path):
    result = many.custom.delay(str(tmp_path / "mark"))
    until(lambda: result.state == "HALF", "the state is not seen")
    (tmp_path / "mark").touch()
    assert get(many.place.app.AsyncResult(get(result))) == 2


def test_a_hard_limit(many):
    with pytest.raises(TimeLimitExceeded):
        get(many.endless.delay())
    assert get(many.add.delay(1, 1)) == 2


def test_tasks_beside_each_other_report_each_for_itself(many, tmp_path):
    results = [many.reports.delay(number, str(tmp_path / "mark")) for number in range(20)]
    for result in results:
        until(lambda result=result: many.place.log_of(result.id)[-1:] == [("progress", {"done": 1, "total": 3, "of":
              results.index(result)})], "its progress is not seen while it runs")  # fmt: skip
    (tmp_path / "mark").touch()
    for number, result in enumerate(results):
        assert get(result) is False
        # Read when the result is there: whatever was reported is, too.
        log = [record for record in many.place.log_of(result.id) if record[0] != "state"]
        text = "".join(data["text"] for event, data in log if event == "token")
        assert text == f"a{number} b{number} c{number} last"
        assert [data for event, data in log if event == "n"] == [[number, place] for place in range(200)]
        assert log[0][0] == "progress" and log[-1][0] == "end" and log[-2] == ("token", {"text": "last"})


def test_threads_with_the_context_of_their_task_report(many):
    result = many.from_threads.delay()
    get(result)
    # The other one was started without.
    assert events(many, result, "thread") == [1]


def test_a_step_is_taken_once(many):
    result = many.steps.delay("x")
    assert get(result) == [{"pair": [1, 2]}, 0, 1, 2]
    taken = [line for line in many.place.notes() if line.startswith(("one x", "many x"))]
    assert taken == ["one x", "many x 0", "many x 1", "many x 2"]
    assert [data["name"] for data in events(many, result, "step")] == ["one", "many", "many#2", "many#3"]


def test_a_swallowed_limit_stops_the_task_at_its_next_report(many):
    with pytest.raises(SoftTimeLimitExceeded):
        get(many.swallows.delay())
    swallowed = [line for line in many.place.notes() if line.startswith("swallowed")]
    # Once: what is raised from then on is no exception that frameworks catch.
    assert swallowed == ["swallowed SoftTimeLimitExceeded" if many.pool == "threads" else "swallowed CancelledError"]


def test_a_task_that_minds_its_limit_may_still_report(many):
    result = many.minds.delay()
    assert get(result) == "in time"
    assert events(many, result, "cleanup") == [True]


def test_a_task_that_streams_is_revoked(many):
    result = many.streams.delay()
    until(lambda: any(event == "token" for event, _ in many.place.log_of(result.id)), "it does not run")
    result.revoke(terminate=True)
    with pytest.raises(TaskRevokedError, match="terminated"):
        get(result)
    assert log_of(many, result)[-1][1]["state"] == "REVOKED"


def test_coroutines_take_steps_and_flood_beside_each_other(many):
    if many.pool == "threads":
        pytest.skip("is about a loop")
    results = [many.many_steps.delay(40), many.many_steps.delay(40), many.floods.delay(3000)]
    assert get(results[0]) == get(results[1]) == [number * 2 for number in range(40)]
    assert get(results[2]) == 3000
    found = events(many, results[2], "n")
    # The log is bounded; what is kept of it is whole.
    assert found == list(range(found[0], 3000))


def test_a_step_that_would_keep_the_loop_is_refused(many):
    if many.pool == "threads":
        pytest.skip("is about a loop")
    with pytest.raises(Exception, match=r"step 'sync' would keep every task .*asyncio.to_thread"):
        get(many.step_on_the_loop.delay())
