"""Python's client, and tasks in Rust: values, errors, options, states."""

import datetime
import decimal
import json
import math
import uuid

import pytest
from celery import group
from celery.exceptions import SoftTimeLimitExceeded, TaskRevokedError, TimeLimitExceeded
from celery.result import GroupResult

from conftest import CELERY, PATIENCE, RUST_NODE, until


def test_a_value_arrives(rust):
    result = rust.send("rust.add", 2, 3)
    assert result.get(timeout=PATIENCE) == 5
    assert (result.state, result.children, result.traceback) == ("SUCCESS", [], None)
    age = datetime.datetime.now(datetime.timezone.utc) - result.date_done
    assert datetime.timedelta(0) <= age < datetime.timedelta(seconds=PATIENCE)


def test_many_results_are_told_of_as_they_come(rust):
    results = [rust.send("rust.add", n, n) for n in range(200)]
    assert [result.get(timeout=PATIENCE) for result in results] == [2 * n for n in range(200)]


def test_arguments_are_bound_as_pythons_are(rust):
    assert rust.get("rust.add", 2, kwargs={"y": 3}) == 5
    assert rust.get("rust.add", kwargs={"y": 3, "x": 4}) == 7
    for args, kwargs in [((1,), {}), ((1, 2, 3), {}), ((1, 2), {"y": 3}), ((1, 2), {"z": 3})]:
        with pytest.raises(TypeError):
            rust.get("rust.add", *args, kwargs=kwargs)


def test_an_error_arrives_as_its_type(rust):
    result = rust.send("rust.fail", "boom ø")
    with pytest.raises(ValueError, match="^boom ø$"):
        result.get(timeout=PATIENCE)
    assert result.state == "FAILURE"
    assert "ValueError: boom ø" in result.traceback


def test_an_error_of_the_application_keeps_its_name(rust):
    with pytest.raises(Exception, match="the disk is on fire in Berlin") as caught:
        rust.get("rust.burn", "Berlin")
    assert type(caught.value).__name__ == "DiskOnFire"


@pytest.mark.celeriac
def test_a_panic_is_a_failure_of_its_task(rust):
    with pytest.raises(Exception, match="as asked") as caught:
        rust.get("rust.panic", "as asked")
    assert type(caught.value).__name__ == "Panic"
    assert rust.get("rust.add", 1, 1) == 2


@pytest.mark.parametrize("value", [
    None, True, 0, -1.5, 1e300, 2**100, "", "ø 😀 \"\\\n\0", [], {}, [[], [None]], {"a": {"b": [1, "2", None]}},
    "x" * 100_000, list(range(5_000)),
], ids=lambda value: repr(value)[:20])
def test_values_come_back_as_they_went(rust, value):
    assert rust.get("rust.echo", value) == value


def test_what_only_pythons_json_has_comes_back(rust):
    assert math.isnan(rust.get("rust.echo", math.nan))
    assert rust.get("rust.echo", [math.inf, -math.inf]) == [math.inf, -math.inf]
    assert rust.get("rust.echo", "\ud800") == "\ud800"


TYPES = {
    "at": datetime.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=datetime.timezone.utc),
    "naive": datetime.datetime(2026, 1, 2, 3, 4, 5),
    "day": datetime.date(2026, 1, 2),
    "time": datetime.time(3, 4, 5),
    "amount": decimal.Decimal("1.50"),
    "id": uuid.UUID(int=1),
    "bytes": b"\xff\x00",
}


@pytest.mark.parametrize("name", TYPES)
def test_extended_types_come_back_as_they_went(rust, name):
    assert rust.get("rust.echo", [TYPES[name]]) == [TYPES[name]]
    assert rust.get("rust.echo", {"text as bytes": b"abc"}) == {"text as bytes": b"abc"}


def test_extended_types_are_types_in_rust(rust):
    answer = rust.get("rust.types", kwargs=TYPES)
    assert answer["text"] == ["2026-01-02T03:04:05.678901Z", "2026-01-02T03:04:05", "2026-01-02", "03:04:05", "1.50",
                              "00000000-0000-0000-0000-000000000001", "[255, 0]"]
    assert answer["back"] == list(TYPES.values())


@pytest.mark.parametrize("serializer", ["json", "msgpack", "yaml"])
@pytest.mark.parametrize("compression", [None, "zlib", "bzip2", "lzma"])
def test_every_serializer_and_compression_is_read(rust, serializer, compression):
    result = rust.send("rust.echo", {"a": [1, "ø"]}, serializer=serializer, compression=compression)
    assert result.get(timeout=PATIENCE) == {"a": [1, "ø"]}


def test_protocol_1_is_read(rust):
    old = rust.client(task_protocol=1)
    assert old.send_task("rust.add", (2, 3)).get(timeout=PATIENCE) == 5
    assert old.send_task("rust.add", (2,), link=old.signature("rust.callback", ("linked",))).get(timeout=PATIENCE,
                                                                                          propagate=False)
    old.close()


def test_a_retry_ends_in_its_value(rust):
    for countdown in (0, 0.3):
        result = rust.send("rust.retry", 2, countdown)
        assert result.get(timeout=PATIENCE) == 2
        assert (result.state, result.retries) == ("SUCCESS", 2)


def test_retry_shows_while_it_waits(rust):
    result = rust.send("rust.retry", 1, 3600)
    until(lambda: result.state == "RETRY", "the state should become RETRY")
    assert isinstance(result.result, RuntimeError) and str(result.result) == "try0"
    assert "try0" in result.traceback


def test_retries_have_an_end(rust):
    result = rust.send("rust.retry", 9, 0)
    with pytest.raises(RuntimeError, match="^try3$"):
        result.get(timeout=PATIENCE)


def test_nothing_runs_before_its_time(rust):
    eta = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=1)
    by_eta = rust.send("rust.add", 1, 2, eta=eta)
    by_countdown = rust.send("rust.add", 1, 2, countdown=1)
    assert (by_eta.get(timeout=PATIENCE), by_countdown.get(timeout=PATIENCE)) == (3, 3)
    assert by_eta.date_done >= eta and by_countdown.date_done >= eta


def test_nothing_runs_after_its_time(rust):
    past = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(seconds=1)
    result = rust.send("rust.add", 1, 2, expires=past)
    with pytest.raises(TaskRevokedError, match="expired"):
        result.get(timeout=PATIENCE)
    assert result.state == "REVOKED"
    assert rust.get("rust.add", 1, 2, expires=PATIENCE) == 3


def test_time_limits_of_the_message_hold(rust):
    with pytest.raises(SoftTimeLimitExceeded):
        rust.get("rust.slow", PATIENCE, "softly limited", soft_time_limit=1)
    with pytest.raises(TimeLimitExceeded):
        rust.get("rust.slow", PATIENCE, "hard limited", time_limit=1)


def test_a_result_that_nobody_wants_is_not_kept(rust):
    by_task = rust.send("rust.noresult", "by task")
    by_call = rust.send("rust.slow", 0, "by call", ignore_result=True)
    rust.noted("by task")
    rust.noted("by call")
    # What is sent after them ends after them, in a worker that keeps the order of ends.
    for result in (by_task, by_call):
        rust.get("rust.add", 1, 1)
        stored = json.loads(rust.redis.get(f"celery-task-meta-{result.id}") or "{}")
        assert stored.get("result") is None, stored


def test_an_ignored_run_has_no_result(rust):
    result = rust.send("rust.ignore")
    rust.get("rust.add", 1, 1)
    assert result.state == "PENDING"


def test_a_rejected_task_fails(rust):
    if CELERY < (5, 7) and rust.reference:
        pytest.skip("Celery 5.5 stores nothing")
    result = rust.send("rust.reject")
    with pytest.raises(Exception) as caught:
        result.get(timeout=PATIENCE)
    assert type(caught.value).__name__ == "Reject"


def test_an_extended_result_tells_of_the_call(rust):
    result = rust.send("rust.echo", "v", kwargs={}, queue="rust")
    assert result.get(timeout=PATIENCE) == "v"
    assert (result.name, list(result.args), result.kwargs) == ("rust.echo", ["v"], {})
    assert (result.worker, result.retries, result.queue) == (RUST_NODE, 0, "rust")


def test_states_of_the_applications_own_show(rust):
    done = rust.folder / "progress-done"
    result = rust.send("rust.progress", str(done))
    until(lambda: result.state == "PROGRESS", "the state should become PROGRESS")
    assert result.info == {"current": 1, "total": 2}
    done.touch()
    assert result.get(timeout=PATIENCE) == "done"


def test_custom_headers_and_stamps_arrive(rust):
    call = rust.sig("rust.context", "v")
    call.stamp(team="red", ids=[1, 2])
    told = call.apply_async(headers={"x-custom": "c"}).get(timeout=PATIENCE)
    assert told["custom"]["x-custom"] == "c"
    assert (told["stamps"]["team"], told["stamps"]["ids"]) == ("red", [1, 2])


def test_a_fresh_task_is_its_own_root(rust):
    result = rust.send("rust.context", "v")
    told = result.get(timeout=PATIENCE)
    assert (told["id"], told["root_id"], told["parent_id"]) == (result.id, result.id, None)
    assert (told["group"], told["retries"], told["queue"]) == (None, 0, "rust")
    assert told["origin"].startswith("gen")


def test_a_task_id_of_the_callers_is_kept(rust):
    name = str(uuid.uuid4())
    assert rust.send("rust.add", 1, 2, task_id=name).id == name
    assert rust.app.AsyncResult(name).get(timeout=PATIENCE) == 3


def test_a_forgotten_result_is_pending(rust):
    result = rust.send("rust.add", 1, 2)
    assert result.get(timeout=PATIENCE) == 3
    result.forget()
    assert rust.app.AsyncResult(result.id).state == "PENDING"


def test_children_know_their_parents(both):
    for parent, child in [("rust", "py"), ("py", "rust"), ("rust", "rust")]:
        result = both.send(f"{parent}.spawn", f"{child}.context", ["v"])
        child_id = result.get(timeout=PATIENCE)
        told = both.app.AsyncResult(child_id).get(timeout=PATIENCE)
        assert (told["id"], told["parent_id"], told["root_id"]) == (child_id, result.id, result.id)
        assert [found.id for found in result.children] == [child_id]


def test_a_group_is_joined_and_saved(both):
    calls = [both.sig(f"{'rust' if n % 2 else 'py'}.add", n, n) for n in range(6)]
    result = group(calls, app=both.app).apply_async()
    result.save()
    assert result.get(timeout=PATIENCE) == [0, 2, 4, 6, 8, 10]
    assert result.completed_count() == 6 and result.successful()
    again = GroupResult.restore(result.id, app=both.app)
    assert again.get(timeout=PATIENCE) == [0, 2, 4, 6, 8, 10]


def test_a_group_with_a_failure_tells_which(both):
    calls = [both.sig("rust.add", 1, 1), both.sig("rust.fail", "boom"), both.sig("py.add", 2, 2)]
    result = group(calls, app=both.app).apply_async()
    found = result.get(timeout=PATIENCE, propagate=False)
    assert (found[0], found[2]) == (2, 4) and isinstance(found[1], ValueError)
    assert result.failed()


def test_started_shows_where_it_is_tracked(place):
    if place.reference:
        pytest.skip("a setting of the worker under test")
    place.rust_worker(task_track_started=True)
    result = place.send("rust.slow", PATIENCE, "tracked")
    until(lambda: result.state == "STARTED", "the state should become STARTED")
    assert isinstance(result.info["pid"], int) and result.info["hostname"].startswith(RUST_NODE)


def test_urgent_tasks_go_first(place):
    for n, priority in enumerate([9, 6, 3, 0, 9, 6, 3, 0]):
        place.send("rust.slow", 0, f"{priority}.{n}", priority=priority)
    # Asked for last and done last: after this all have run.
    last = place.send("rust.add", 1, 1, priority=9)
    place.rust_worker(concurrency=1)
    last.get(timeout=PATIENCE)
    order = [int(note[0]) for note in place.notes()]
    assert order == [0, 0, 3, 3, 6, 6, 9, 9]
