"""An application whose broker and result backend are `celeriac+http://…`, and that says nothing else: no Redis at all."""

import re
import signal
import sys
import urllib.error

import pytest
from celery import chain, chord, group
from celery.exceptions import TaskRevokedError, TimeLimitExceeded, WorkerLostError
from celery.result import GroupResult
from conftest import PATIENCE, free_port, until


def get(result):
    return result.get(timeout=PATIENCE)


def test_a_task(embedded):
    proj = embedded.proj
    assert get(proj.add.delay(2, 3)) == 5
    assert get(proj.echo.delay({"a": [1, None, "ü"]})) == {"a": [1, None, "ü"]}
    assert get(proj.app.send_task("proj.add", (1, 1))) == 2


def test_a_message_is_kept_as_kombu_made_it(embedded):
    result = embedded.proj.add.apply_async((2, 3), headers={"x-own": "blue"}, priority=5, countdown=0.1)
    assert get(result) == 5
    assert result.children == [] and result.date_done


def test_a_failure_is_raised_at_the_caller(embedded):
    result = embedded.proj.failing.delay()
    with pytest.raises(ValueError, match="^no$"):
        get(result)
    assert result.state == "FAILURE" and "ValueError: no" in result.traceback


def test_retries(embedded):
    result = embedded.proj.flaky.delay()
    assert get(result) == 2


def test_a_retry_that_is_given_up(embedded):
    result = embedded.proj.steps.delay("retry")
    assert get(result) == [{"pair": [1, 2], "n": None}, [0, 1, 2]]
    assert embedded.notes().count("one") == 1


def test_a_task_replaced_by_another(embedded):
    assert get(embedded.proj.replaced.delay(4)) == 5


def test_a_task_sent_from_a_task(embedded):
    sent = get(embedded.proj.sends.delay(4))
    assert get(embedded.app.AsyncResult(sent)) == 8


def test_canvases(embedded):
    add, total, echo = embedded.proj.add, embedded.proj.total, embedded.proj.echo
    assert get(chain(add.s(1, 2), add.s(3), add.s(4))()) == 10
    assert get(group(add.s(n, n) for n in range(5))()) == [0, 2, 4, 6, 8]
    assert get(chord([add.s(n, n) for n in range(5)], total.s())()) == 20
    assert get(chain(group(add.s(1, 1), add.s(2, 2)), total.s(), add.s(1))()) == 7
    assert get(chord([chain(add.s(1, 1), add.s(1)), chord([echo.s(2), echo.s(3)], total.s())], total.s())()) == 8
    # The order in which Celery takes a group within a header apart, on any backend.
    assert get(chord([group(echo.s(1), echo.s(2)), echo.s(3)], echo.s())()) == [2, 1, 3]
    assert get(chord([chain(echo.s(1), group(add.s(1), add.s(2))), echo.s(3)], echo.s())()) == [[2, 3], 3]
    assert get(chord([], total.s())()) == 0


def test_a_chord_whose_header_fails(embedded):
    proj = embedded.proj
    result = chord([proj.add.s(1, 1), proj.failing.s()], proj.total.s())()
    # Its parent's own error would be raised first, were that there already.
    found = result.get(timeout=PATIENCE, propagate=False)
    assert re.match(r"Dependency .* raised ValueError\('no'\)", str(found)) and result.state == "FAILURE"


def test_a_chain_that_fails_tells_its_errback(embedded):
    proj = embedded.proj
    result = chain(proj.failing.si(), proj.add.s(1)).apply_async(link_error=proj.heard.si())
    with pytest.raises(ValueError):
        get(result)
    embedded.noted("heard")


def test_callbacks(embedded):
    proj = embedded.proj
    before = embedded.notes().count("heard")
    get(proj.add.apply_async((1, 2), link=proj.heard.s()))
    until(lambda: embedded.notes().count("heard") > before, "the callback is not run")


def test_a_state_of_its_own(embedded, tmp_path):
    mark = tmp_path / "mark"
    result = embedded.proj.custom.delay(str(mark))
    until(lambda: result.state == "HALF", "the state is not seen")
    assert result.info == {"done": 1}
    mark.touch()
    assert get(result) == "whole"


def test_ends_that_only_the_supervisor_sees(embedded):
    with pytest.raises(TimeLimitExceeded):
        get(embedded.proj.endless.delay())
    with pytest.raises(WorkerLostError, match="SIGKILL"):
        get(embedded.proj.dies.delay())
    # In a chord, too.
    proj = embedded.proj
    found = chord([proj.echo.s(1), proj.dies.s()], proj.total.s())().get(timeout=PATIENCE, propagate=False)
    assert re.match("Dependency .* raised WorkerLostError", str(found))


def test_a_task_that_runs_at_most_once_fails_with_its_worker(embedded_alone, tmp_path):
    place, proj = embedded_alone, embedded_alone.proj
    doomed = place.worker()
    result = proj.begins_early.apply_async((str(tmp_path / "never"),), link_error=proj.failed.s())
    part = chord([proj.begins_early.s(str(tmp_path / "never")), proj.echo.s(1)], proj.total.s())()
    until(lambda: place.notes().count("begun early") == 2, "they do not run")
    doomed.kill()
    place.worker(name="other")
    with pytest.raises(WorkerLostError):
        get(result)
    assert result.state == "FAILURE" and place.fetch(f"/api/v1/tasks/{result.id}")["state"] == "FAILURE"
    place.noted(f"failed {result.id} WorkerLostError")
    assert re.match("Dependency .* raised WorkerLostError", str(part.get(timeout=PATIENCE, propagate=False)))
    assert place.notes().count("begun early") == 2


def test_children_are_listed(embedded):
    result = embedded.proj.sends.delay(4)
    child = get(result)
    assert [found.id for found in result.children] == [child]
    assert [(parent and parent.id, found.id) for parent, found in result.iterdeps(intermediate=True)] == [
        (None, result.id), (result.id, child)]  # fmt: skip


def test_a_group_is_saved_and_restored(embedded):
    add = embedded.proj.add
    result = group(add.s(1, 1), chord([add.s(1, 2), add.s(3, 4)], embedded.proj.total.s()))()
    assert GroupResult.restore(result.id, app=embedded.app) is None
    result.save()
    restored = GroupResult.restore(result.id, app=embedded.app)
    assert restored == result and get(restored) == [2, 10]
    restored.delete()
    assert GroupResult.restore(result.id, app=embedded.app) is None
    assert get(result) == [2, 10]


def test_a_result_is_forgotten(embedded, tmp_path):
    result = embedded.proj.add.delay(2, 3)
    assert get(result) == 5
    result.forget()
    assert embedded.app.AsyncResult(result.id).state == "PENDING"
    with pytest.raises(urllib.error.HTTPError, match="404"):
        embedded.fetch(f"/api/v1/tasks/{result.id}")
    # One that runs is not: it would be lost to those who wait for it.
    mark = tmp_path / "mark"
    runs = embedded.proj.custom.delay(str(mark))
    until(lambda: runs.state == "HALF", "it does not run")
    runs.forget()
    assert runs.state == "HALF"
    mark.touch()
    assert get(runs) == "whole"
    members = group(embedded.proj.echo.s(n) for n in range(3))()
    assert get(members) == [0, 1, 2]
    members.forget()
    assert [embedded.app.AsyncResult(member.id).state for member in members] == ["PENDING"] * 3


def test_a_task_revokes_and_forgets_others_and_keeps_a_group(embedded, tmp_path):
    waits = embedded.proj.add.apply_async((1, 1), countdown=3600)
    ended = embedded.proj.add.delay(1, 2)
    assert get(ended) == 3
    mark = tmp_path / "mark"
    runs = embedded.proj.catches.delay(str(mark))
    until(lambda: mark.exists() and mark.read_text() == "ready", "it does not run")
    seen = get(embedded.proj.governs.delay(waits.id, runs.id, ended.id))
    assert seen == [None, [["kept", None], [[[waits.id, None], None]]], None]
    assert embedded.app.AsyncResult(ended.id).state == "PENDING"
    with pytest.raises(TaskRevokedError, match="revoked"):
        get(waits)
    with pytest.raises(TaskRevokedError, match="terminated"):
        get(runs)
    until(lambda: mark.read_text() == "caught", "it was stopped by another signal")


@pytest.mark.parametrize("options", [(), ("--start-method", "spawn"), ("-P", "threads")])
def test_handlers_of_signals_send_by_the_server(embedded_alone, options):
    place = embedded_alone
    place.worker(*options, PLACE_SENDS="1")
    lines = lambda where: [line.split() for line in place.notes() if line.startswith(f"{where} ")]
    until(lambda: lines("worker_ready") and lines("worker_process_init"), "nothing is sent")
    for _, how, *task_id in lines("worker_ready") + lines("worker_process_init"):
        assert how == "sent", place.notes()
        assert get(place.app.AsyncResult(*task_id)) == 5
    # And what runs still goes by its supervisor.
    assert get(place.app.AsyncResult(get(place.proj.sends.delay(4)))) == 8


def test_tasks_that_wait_are_revoked(embedded):
    add = embedded.proj.add
    alone = add.apply_async((1, 1), countdown=3600)
    members = group(add.s(n, n) for n in range(3)).apply_async(countdown=3600)
    alone.revoke()
    members.revoke()
    for result in [alone, *members]:
        with pytest.raises(TaskRevokedError, match="revoked"):
            get(result)
        assert result.state == "REVOKED"


def test_a_task_is_revoked(embedded, tmp_path):
    result = embedded.proj.lone_token.delay(str(tmp_path / "never"))
    until(lambda: any(event == "token" for event, _ in embedded.log_of(result.id)), "it does not run")
    result.revoke(terminate=True)
    with pytest.raises(Exception, match="terminated"):
        get(result)


@pytest.mark.parametrize("name", ["SIGUSR2", "usr2", signal.SIGUSR2])
def test_a_task_is_revoked_by_a_signal(embedded, tmp_path, name):
    mark = tmp_path / "mark"
    result = embedded.proj.catches.delay(str(mark))
    until(lambda: mark.exists() and mark.read_text() == "ready", "it does not run")
    result.revoke(terminate=True, signal=name)
    with pytest.raises(Exception, match="terminated"):
        get(result)
    until(lambda: mark.read_text() == "caught", "it was stopped by another signal")


def test_reports_and_steps(embedded):
    result = embedded.proj.reports.delay()
    assert get(result) is False
    log = [event for event, _ in embedded.log_of(result.id)]
    assert log == ["state", "progress", "token", "found", "token", "end"]


def test_a_soft_limit_that_is_swallowed(embedded):
    from billiard.exceptions import SoftTimeLimitExceeded

    with pytest.raises(SoftTimeLimitExceeded):
        get(embedded.proj.swallows.delay("token"))


def test_celery_s_own_worker_is_refused(embedded):
    command = [sys.executable, "-m", "celery", "-A", "proj", "worker", "-c", 1, "--without-mingle", "--without-gossip"]
    process = embedded.start(*command)
    until(lambda: "celeriac worker -A" in process.text(), "it is not refused")
    process.kill()


def test_a_server_that_is_away_is_said_to_be(embedded):
    from celery import Celery

    url = f"celeriac+http://127.0.0.1:{free_port()}"
    app = Celery("away", broker=url, backend=url)
    with pytest.raises(Exception, match="cannot be reached at http://127.0.0.1.*celeriac serve"):
        app.send_task("x", retry=False)


def test_what_the_server_refuses_is_told(embedded):
    from celeriac._link import Refused, Server

    link = Server(embedded.api)
    with pytest.raises(Refused, match="/messages/0/queue"):
        link.publish([{"queue": "", "message": {}}], [])
