"""What tasks report under celeriac's worker."""

import pathlib

import pytest
from billiard.exceptions import SoftTimeLimitExceeded
from celery import chain
from conftest import PATIENCE, until


def run(place, name, *args, **options):
    return getattr(place.proj, name).apply_async(args, **options)


def ended(place, result):
    """The whole log."""

    return until(lambda: place.log_of(result.id, ended=True), "the log has no end")


def events(place, result, kind):
    return [data for event, data in ended(place, result) if event == kind]


def test_reports_are_in_the_log_in_their_order(shared):
    result = run(shared, "reports")
    assert result.get(timeout=PATIENCE) is False
    log = [(event, data) for event, data in ended(shared, result) if event not in ("state", "end")]
    assert log[0] == ("progress", {"done": 1, "total": 3, "what": "first"})
    assert log[1] == ("token", {"text": "abc"})
    assert log[2] == ("found", {"path": "x", "when": None})
    assert log[3] == ("token", {"text": "d"})
    assert len(log) == 4


def test_a_token_is_seen_while_its_task_says_nothing_more(shared, tmp_path):
    mark = tmp_path / "mark"
    result = run(shared, "lone_token", str(mark))
    until(lambda: ("token", {"text": "hello"}) in shared.log_of(result.id), "the token is not seen")
    assert result.state == "PENDING"
    mark.touch()
    result.get(timeout=PATIENCE)


def test_threads_report_for_the_task_that_started_them(shared):
    result = run(shared, "from_threads")
    assert result.get(timeout=PATIENCE) == [number * 2 for number in range(20)]
    assert sorted(events(shared, result, "thread")) == list(range(21))
    text = "".join(data["text"] for data in events(shared, result, "token"))
    assert sorted(text) == sorted("".join(f"<{number}>" for number in range(20)))


def test_steps_of_coroutines(shared):
    assert run(shared, "in_asyncio").get(timeout=PATIENCE) == [0, 2, 4, 6, 8]
    assert sorted(line for line in shared.notes() if line.startswith("double")) == [f"double {n}" for n in range(5)]


@pytest.mark.parametrize("kind", ["once", "retry"])
def test_a_step_is_taken_once(place, kind):
    place.serve()
    place.worker()
    result = run(place, "steps", kind)
    assert result.get(timeout=PATIENCE) == [{"pair": [1, 2], "n": None}, [0, 1, 2]]
    assert place.notes() == ["one", "many 0", "many 1", "many 2", "last"]
    names = [data["name"] for data in events(place, result, "step")]
    assert names == ["one", "many", "many#2", "many#3", "last"]


def test_a_step_is_taken_once_though_the_process_is_killed(place):
    place.serve()
    place.worker()
    result = run(place, "steps", "kill")
    with pytest.raises(Exception, match="SIGKILL"):
        result.get(timeout=PATIENCE)
    assert place.notes() == ["one", "many 0", "many 1", "many 2"]
    # Sent again under its id, it goes on where it was.
    place.proj.steps.apply_async(("go on",), task_id=result.id)
    until(lambda: "last" in place.notes(), "it does not go on")
    assert place.notes() == ["one", "many 0", "many 1", "many 2", "last"]


def test_a_step_is_taken_once_though_the_worker_is_killed(place, tmp_path):
    worker = place.worker()
    result = place.proj.steps_then_wait.delay(str(tmp_path / "mark"))
    # What a step came to is kept before it returns; killed sooner, it would rightly be taken again.
    place.noted("kept")
    worker.kill()
    (tmp_path / "mark").touch()
    place.worker(name="second")
    assert result.get(timeout=PATIENCE) == 7
    assert place.notes() == ["slow", "kept", "kept"]


def test_a_step_s_value_that_is_no_json_is_an_error_with_a_remedy(shared):
    result = run(shared, "unkept")
    with pytest.raises(Exception, match=r"step 'lock' cannot be kept as JSON.*return plain data"):
        result.get(timeout=PATIENCE)


@pytest.mark.parametrize("how", ["token", "progress", "step"])
def test_a_swallowed_limit_stops_the_task_at_its_next_report(shared, how):
    result = chain(shared.proj.swallows.s(how)).apply_async(link_error=shared.proj.heard.si())
    with pytest.raises(SoftTimeLimitExceeded):
        result.get(timeout=PATIENCE)
    # Once, by Celery's exception: ours it could not.
    assert shared.notes().count("swallowed SoftTimeLimitExceeded") >= 1
    shared.noted("heard")


def test_with_a_task_that_had_to_be_stopped_goes_its_process(place):
    """And with it the threads of a framework, which may still hold a model's answer open."""
    place.serve()
    place.worker(concurrency=1)
    result = run(place, "swallows", "token")
    with pytest.raises(SoftTimeLimitExceeded):
        result.get(timeout=PATIENCE)
    [pid] = {line.split()[1] for line in place.notes() if line.startswith("swallows ")}
    until(lambda: not pathlib.Path(f"/proc/{pid}").exists(), "the process is still there")
    assert run(place, "add", 2, 3).get(timeout=PATIENCE) == 5


def test_a_task_that_minds_its_limit_may_still_report(shared):
    result = run(shared, "minds")
    assert result.get(timeout=PATIENCE) == "in time"
    assert events(shared, result, "cleanup") == [True]


def test_a_limit_does_not_cut_frames(place):
    place.serve()
    place.worker()
    result = run(place, "in_the_midst_of_frames")
    count = result.get(timeout=PATIENCE)
    assert count > 10
    log = events(place, result, "n")
    # The log is bounded, what is kept of it is whole.
    assert log == list(range(log[0], log[-1] + 1)) and log[-1] >= count - 1
    # The conversation goes on in the same process.
    assert run(place, "add", 2, 3).get(timeout=PATIENCE) == 5


def test_an_installed_package_is_not_needed(place, monkeypatch):
    """The copy that the program carries is all of it."""
    place.env["PYTHONPATH"] = str(pathlib.Path(__file__).parent)
    place.serve()
    place.worker()
    result = run(place, "reports")
    assert result.get(timeout=PATIENCE) is False
    assert events(place, result, "progress")
