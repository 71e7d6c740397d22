"""The same tasks where celeriac's worker is not: as functions, eagerly, and under Celery's own."""

import asyncio
import logging

import pytest
from conftest import PATIENCE, until

import celeriac
from celeriac import _task


def test_outside_of_any_task_nothing_happens(caplog):
    caplog.set_level(logging.DEBUG, "celeriac")
    celeriac.progress(1, 2, note="x")
    celeriac.emit("found", {"a": 1})
    celeriac.token("text")
    assert celeriac.cancelled() is False
    assert celeriac.step("double", lambda x, y: (x, y), 1, y=2) == (1, 2)
    assert [record.levelname for record in caplog.records] == ["DEBUG", "DEBUG"]


def test_a_step_s_own_error_is_passed_on():
    with pytest.raises(ZeroDivisionError):
        celeriac.step("divide", lambda: 1 / 0)


def test_a_coroutine_is_awaited():
    async def double(x):
        return x * 2

    async def main():
        return await celeriac.step("double", double, 4)

    assert asyncio.run(main()) == 8


class Recorder:
    """A run that keeps what it is told."""

    def __init__(self):
        self.records, self.steps, self.stopped = [], {}, False

    def record(self, event, data):
        self.records.append((event, data))

    def token(self, text):
        self.records.append(("token", text))

    def find_step(self, name):
        return name, self.steps.get(name)

    def store_step(self, key, value):
        self.steps[key] = value

    def cancelled(self):
        return self.stopped

    def check(self):
        if self.stopped:
            raise celeriac.TaskStopped("soft_time_limit")


@pytest.fixture
def run():
    run = Recorder()
    mark = _task.enter(run, alone=True)
    yield run
    _task.leave(mark)


def test_data_is_written_as_it_usually_is(run):
    import dataclasses
    import datetime
    import decimal
    import enum
    import uuid

    @dataclasses.dataclass
    class Point:
        x: int

    class Colour(enum.Enum):
        RED = "red"

    class Model:
        def model_dump(self, mode):
            return {"mode": mode}

    day = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
    celeriac.emit("all", [Point(1), Colour.RED, Model(), day, decimal.Decimal("1.5"), uuid.UUID(int=0), {1}, b"x",
                          datetime.timedelta(seconds=2)])  # fmt: skip
    assert run.records == [("all", '[{"x":1},"red",{"mode":"json"},"2026-01-02T00:00:00+00:00","1.5",'
                            '"00000000-0000-0000-0000-000000000000",[1],"x",2.0]')]  # fmt: skip


@pytest.mark.parametrize("data", [object(), float("nan"), Recorder])
def test_what_is_no_json_is_left_out_with_a_warning(run, caplog, data):
    celeriac.emit("odd", data)
    assert run.records == [] and "'odd' is left out" in caplog.text


def test_a_step_returns_what_it_kept(run):
    assert celeriac.step("pair", lambda: (1, {2: None})) == [1, {"2": None}]
    assert celeriac.step("pair", lambda: pytest.fail("taken again")) == [1, {"2": None}]


@pytest.mark.parametrize("value", [object(), {1, 2}, float("inf"), b"x"])
def test_a_step_that_returns_no_json_says_what_to_do(run, value):
    with pytest.raises(celeriac.StepError, match="step 'odd' cannot be kept.*return plain data"):
        celeriac.step("odd", lambda: value)
    assert run.steps == {}


def test_what_is_stopped_says_so_to_who_catches_every_exception(run):
    run.stopped = True
    for report in [lambda: celeriac.progress(1), lambda: celeriac.token("x"), lambda: celeriac.step("s", int)]:
        with pytest.raises(celeriac.TaskStopped):
            try:
                report()
            except Exception:
                pytest.fail("it was caught")
    celeriac.emit("last words")
    assert run.records == [("last words", "null")] and celeriac.cancelled()


def test_a_task_that_is_called_or_run_eagerly(place):
    place.app.conf.task_always_eager = True
    assert place.proj.reports() is False
    assert place.proj.reports.delay().get() is False
    assert place.proj.steps.delay("once").get() == [{"pair": (1, 2), "n": None}, [0, 1, 2]]


def test_under_celery_s_own_worker(place, tmp_path):
    place.celery_worker()
    mark = tmp_path / "mark"
    result = place.proj.progresses.delay(str(mark))
    until(lambda: result.state == "PROGRESS", "there is no state of progress")
    assert result.info == {"done": 1, "total": 2, "what": "half"}
    mark.touch()
    assert result.get(timeout=PATIENCE) == "over"
    assert place.proj.from_threads.delay().get(timeout=PATIENCE)[-1] == 38
