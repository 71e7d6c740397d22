"""An unchanged Celery application, run by `celery -A pyapp worker` and by `celeriac -A pyapp worker`: the same is expected
of both, so that one can take the place of the other on any day."""

import json
import os
import signal
import sys
import time

import pytest
from celery import chain, chord, group
from celery.exceptions import NotRegistered, Reject, TaskRevokedError, TimeLimitExceeded, WorkerLostError

from conftest import CELERIAC, CELERY, PATIENCE, open_place, until
from test_events import Listener

NODE = "app@interop"
# Tasks that nobody knows are not waited for as long as in earnest.
UNKNOWN = "worker_unknown_task_delay = 0.2\nworker_unknown_task_timeout = 0.5\n"


class App:
    """The application, and the worker that runs it."""

    def __init__(self, place, kind):
        self.place, self.kind, self.plain = place, kind.split("-")[0], kind.endswith("-plain")
        # The module is made for one address; each kind of worker has a database of its own.
        sys.modules.pop("pyapp", None)
        os.environ["INTEROP_REDIS"] = place.url
        self.module = __import__("pyapp")
        self.app = self.module.app
        self.tasks = self.module
        self.worker = None

    def start(self, *options, node=NODE, concurrency=2, env=None):
        more = [*options, "-n", node, "-c", concurrency, "-l", "info"]
        if self.kind == "celery":
            command = [sys.executable, "-m", "celery", "-A", "pyapp", "worker", *more]
        else:
            command = [CELERIAC, "-A", "pyapp", "--python", sys.executable, "worker", *more]
        # Pickle is accepted, and tests may be run by root.
        env = {"C_FORCE_ROOT": "1"} | (env or {})
        for name, value in env.items():
            os.environ[name] = value
        worker = self.place.start(node, command)
        for name in env:
            del os.environ[name]
        self.place.reachable_by(self.app, node)
        return worker

    def noted(self, line):
        return self.place.noted(line)

    def note_that(self, begins):
        """Waits for a note that begins so, and returns what comes after."""
        def look():
            return [line[len(begins):].strip() for line in self.place.notes() if line.startswith(begins)]

        return until(look, f"no note begins with {begins!r}; notes: {self.place.notes()}")[-1]

    def get(self, signature, **options):
        return signature.apply_async(**options).get(timeout=PATIENCE)

    def meta(self, task_id):
        found = self.place.redis.get(f"celery-task-meta-{task_id}")
        return found and json.loads(found)

    def inspect(self, **options):
        return self.app.control.inspect(destination=[NODE], timeout=10, **options)


def reachable_by(app, node):
    return until(lambda: app.control.ping(destination=[node], timeout=1), f"{node} does not answer a ping")


# With Celery's worker, with ours, and with ours where no signals are watched, so that it stores results itself.
@pytest.fixture(scope="module", params=["celery", "celeriac", "celeriac-plain"])
def running(request, server, tmp_path_factory):
    opened = open_place(server, tmp_path_factory, request, f"pyapp-{request.param}")
    place = next(opened)
    place.reachable_by = reachable_by
    os.environ["INTEROP_NOTES"] = str(place.notes_file)
    (place.folder / "celeriac.toml").write_text(UNKNOWN)
    app = App(place, request.param)
    app.worker = app.start(env={"INTEROP_PLAIN": "1"} if app.plain else {})
    yield app
    app.app.close()
    next(opened, None)


@pytest.fixture
def app(running, request):
    if running.plain and request.node.get_closest_marker("signals"):
        pytest.skip("no signal is watched here")
    os.environ["INTEROP_NOTES"] = str(running.place.notes_file)
    running.app.set_current()
    yield running
    assert running.worker.lives(), f"the worker has ended:\n{running.worker.text()[-6000:]}"


# Tasks.


def test_a_task_returns(app):
    assert app.get(app.tasks.add.s(2, 3)) == 5


def test_the_meta_is_celery_s(app):
    result = app.tasks.add.delay(2, 3)
    result.get(timeout=PATIENCE)
    meta = app.meta(result.id)
    assert meta["status"] == "SUCCESS" and meta["result"] == 5 and meta["children"] == []
    assert meta["name"] == "pyapp.add" and meta["args"] == [2, 3] and meta["worker"] == NODE
    assert meta["queue"] == "pyapp" and meta["date_done"]


def test_a_bound_task_knows_its_request(app):
    result = app.tasks.who.apply_async(headers={"x-tag": "blue"}, time_limit=50, soft_time_limit=40)
    found = result.get(timeout=PATIENCE)
    assert found["id"] == found["root_id"] == found["correlation_id"] == result.id
    assert found["hostname"] == NODE and found["parent_id"] is None and found["retries"] == 0
    assert found["delivery_info"] == {"exchange": "", "routing_key": "pyapp", "priority": 0, "redelivered": False}
    assert found["headers"] == "blue" and found["timelimit"] == [50, 40]
    assert not found["called_directly"] and not found["is_eager"]
    assert found["pid"] != app.worker.pid


@pytest.mark.parametrize("value", [None, True, 1.5, "ünï", [1, [2]], {"a": {"b": None}}, "x" * 200_000])
def test_values_come_back(app, value):
    assert app.get(app.tasks.echo.s(value)) == value


@pytest.mark.parametrize("serializer", ["json", "pickle", "msgpack", "yaml"])
def test_every_serializer_that_the_application_accepts(app, serializer):
    assert app.get(app.tasks.echo.s([1, "a"]), serializer=serializer) == [1, "a"]


@pytest.mark.parametrize("compression", ["gzip", "bzip2"])
def test_compressed_bodies(app, compression):
    assert app.get(app.tasks.echo.s("x" * 5000), compression=compression) == "x" * 5000


def test_a_failure_keeps_type_arguments_and_traceback(app):
    result = app.tasks.broken.delay()
    with pytest.raises(Exception) as caught:
        result.get(timeout=PATIENCE)
    assert type(caught.value).__name__ == "Broken" and caught.value.args == ("engine", 7)
    assert 'raise Broken("engine", 7)' in result.traceback


def test_a_name_that_the_application_has_not(app):
    result = app.app.send_task("pyapp.absent", args=[1], queue="pyapp")
    with pytest.raises(NotRegistered, match="pyapp.absent"):
        result.get(timeout=PATIENCE)
    assert result.state == "FAILURE" and app.meta(result.id)["result"]["exc_type"] == "NotRegistered"
    if not app.plain:
        app.noted(f"unknown {result.id} pyapp.absent KeyError pyapp.absent")
    until(lambda: "pyapp.absent" in app.worker.text(), "nothing is logged")


def test_who_waits_for_a_name_that_nobody_has_hears_of_it(app):
    if app.kind == "celery":
        pytest.skip("Celery lets them wait")
    result = app.app.send_task("pyapp.absent", queue="pyapp", link_error=app.tasks.errback.s())
    part = chord([app.tasks.add.s(1, 1), app.app.signature("pyapp.absent", queue="pyapp")], app.tasks.xsum.s())()
    with pytest.raises(Exception, match="absent"):
        part.get(timeout=PATIENCE)
    app.noted(f"errback {result.id}")
    assert result.id in app.place.celeriac("dead", "list").stdout


def test_a_value_that_cannot_be_serialized_is_a_failure(app):
    result = app.tasks.unserializable.delay()
    with pytest.raises(Exception):
        result.get(timeout=PATIENCE)
    assert result.state == "FAILURE"


def test_wrong_arguments_are_a_failure(app):
    with pytest.raises(TypeError):
        app.get(app.app.signature("pyapp.add", args=(1,)))


def test_retries(app):
    assert app.get(app.tasks.retry.s(2)) == 2


def test_retries_with_a_countdown(app):
    began = time.monotonic()
    assert app.get(app.tasks.retry.s(1, countdown=1)) == 1
    assert time.monotonic() - began >= 1


def test_retries_run_out(app):
    with pytest.raises(RuntimeError, match="try 3"):
        app.get(app.tasks.retry.s(9))


def test_autoretry(app):
    with pytest.raises(ConnectionError):
        app.get(app.tasks.autoretry.s())
    assert app.place.notes().count("autoretry") == 3


@pytest.mark.signals
def test_hooks_of_a_class_of_one_s_own(app):
    result = app.tasks.watched.delay("world")
    assert result.get(timeout=PATIENCE) == "hello world"
    app.noted(f"postrun {result.id} SUCCESS")
    notes = app.place.notes()
    order = [f"received {result.id} pyapp.watched {NODE} ('world',)", f"prerun {result.id}", f"before_start {result.id}", "call pyapp.watched",
             f"on_success {result.id} hello world", f"after_return {result.id} SUCCESS", f"postrun {result.id} SUCCESS"]
    places = [notes.index(line) for line in order]
    assert places == sorted(places), notes
    assert "signal success" in notes


@pytest.mark.signals
def test_hooks_of_a_failure(app):
    result = app.tasks.watched.delay("fail")
    with pytest.raises(KeyError):
        result.get(timeout=PATIENCE)
    app.noted(f"postrun {result.id} FAILURE")
    for line in [f"on_failure {result.id} KeyError('fail')", f"after_return {result.id} FAILURE",
                 f"signal failure {result.id} KeyError"]:
        assert line in app.place.notes()


@pytest.mark.signals
def test_hooks_of_a_retry(app):
    result = app.tasks.watched.delay("retry")
    assert result.get(timeout=PATIENCE) == "hello retry"
    app.note_that(f"on_retry {result.id} ")
    app.noted("signal retry")


def test_ignore_stores_nothing(app):
    result = app.tasks.ignore.delay()
    app.noted("ignored")
    app.get(app.tasks.add.s(1, 1))
    assert app.meta(result.id) is None


def test_ignore_keeps_the_state_that_was_set(app):
    result = app.tasks.ignore_with_state.delay()
    until(lambda: result.state == "CUSTOM", "the state is not there")
    assert result.info == {"left": "behind"}


@pytest.mark.skipif(CELERY < (5, 7), reason="older ones store nothing")
def test_reject(app):
    with pytest.raises(Reject):
        app.get(app.tasks.reject.s())


def test_reject_and_requeue(app):
    assert app.get(app.tasks.reject_once.s()) == "at last"
    assert app.place.notes().count("rejected once") == 1


def test_ignored_results_are_not_stored(app):
    result = app.tasks.forget.delay("forgotten")
    app.noted("forgotten")
    app.get(app.tasks.add.s(1, 1))
    assert app.meta(result.id) is None


def test_the_caller_may_ignore_a_result(app):
    result = app.tasks.callback.apply_async(("v", "unheard"), ignore_result=True)
    app.noted("callback unheard v")
    app.get(app.tasks.add.s(1, 1))
    assert app.meta(result.id) is None


def test_states_of_one_s_own(app, tmp_path):
    result = app.tasks.progress.delay(str(tmp_path / "gate"))
    until(lambda: result.state == "PROGRESS", "the state is not there")
    assert result.info == {"done": 1, "total": 2}
    (tmp_path / "gate").touch()
    assert result.get(timeout=PATIENCE) == "done"


def test_started_is_stored_where_it_is_wanted(app, tmp_path):
    result = app.tasks.tracked.delay(str(tmp_path / "gate"))
    until(lambda: result.state == "STARTED", "the state is not there")
    info = result.info
    (tmp_path / "gate").touch()
    assert info == {"pid": result.get(timeout=PATIENCE), "hostname": NODE}


def test_countdown(app):
    began = time.time()
    assert app.get(app.tasks.add.s(1, 1), countdown=1) == 2
    assert time.time() - began >= 1


@pytest.mark.signals
def test_expired(app):
    result = app.tasks.add.apply_async((1, 1), expires=-1)
    with pytest.raises(TaskRevokedError, match="expired"):
        result.get(timeout=PATIENCE)
    app.noted(f"signal revoked {result.id} False True")


def test_what_a_task_prints_is_logged(app):
    assert app.get(app.tasks.talk.s()) == "talked"
    until(lambda: "printed by a task" in app.worker.text() and "logged by a task" in app.worker.text(), "not logged")
    line = next(line for line in app.worker.text().splitlines() if "logged by a task" in line)
    assert "ForkPoolWorker-" in line and "pyapp.talk" in line


def test_waiting_inside_a_task_is_refused(app):
    assert app.get(app.tasks.wait_inside.s()) == "Never call result"


def test_children_are_listed(app):
    result = app.tasks.spawn.delay(3)
    ids = result.get(timeout=PATIENCE)
    assert [child.id for child in result.children] == ids


# Canvas.


def test_chain(app):
    result = chain(app.tasks.add.s(1, 2), app.tasks.mul.s(10), app.tasks.add.s(5))()
    assert result.get(timeout=PATIENCE) == 35
    assert result.parent.get(timeout=PATIENCE) == 30 and result.parent.parent.get(timeout=PATIENCE) == 3


def test_group(app):
    assert group(app.tasks.add.s(n, n) for n in range(10))().get(timeout=PATIENCE) == [2 * n for n in range(10)]


def test_chord(app):
    assert chord([app.tasks.add.s(n, n) for n in range(10)])(app.tasks.xsum.s()).get(timeout=PATIENCE) == 90


def test_empty_chord(app):
    assert chord([])(app.tasks.xsum.s()).get(timeout=PATIENCE) == 0


def test_chain_in_chord_in_chain(app):
    add, mul, xsum = app.tasks.add, app.tasks.mul, app.tasks.xsum
    work = chain(add.s(1, 1), group(add.s(1), chain(mul.s(2), add.s(1))), xsum.s(), mul.s(10))
    assert work().get(timeout=PATIENCE) == 80


def test_groups_of_chords(app):
    add, xsum = app.tasks.add, app.tasks.xsum
    work = group(chord([add.s(n, m) for m in range(3)], xsum.s()) for n in range(3))
    assert work().get(timeout=PATIENCE) == [3, 6, 9]


def test_chord_in_chord(app):
    add, xsum = app.tasks.add, app.tasks.xsum
    inner = chord([add.s(1, 1), add.s(2, 2)], xsum.s())
    assert chord([inner, add.s(3, 3)], xsum.s())().get(timeout=PATIENCE) == 12


def test_map_starmap_chunks(app):
    assert app.tasks.xsum.map([[1, 2], [3]]).apply_async().get(timeout=PATIENCE) == [3, 3]
    assert app.tasks.add.starmap([(1, 2), (3, 4)]).apply_async().get(timeout=PATIENCE) == [3, 7]
    assert app.tasks.add.chunks([(n, n) for n in range(4)], 2)().get(timeout=PATIENCE) == [[0, 2], [4, 6]]


def test_replace(app):
    assert app.get(app.tasks.replace.s(3, 4)) == 7


def test_replace_with_a_chord(app):
    assert app.get(app.tasks.replace_with_chord.s([1, 2, 3])) == 9


def test_replace_in_a_chain(app):
    assert chain(app.tasks.replace.s(3, 4), app.tasks.mul.s(2))().get(timeout=PATIENCE) == 14


def test_replace_in_a_chord(app):
    assert chord([app.tasks.replace.s(1, 1), app.tasks.add.s(1, 2)], app.tasks.xsum.s())().get(timeout=PATIENCE) == 5


def test_callbacks(app):
    result = app.tasks.add.apply_async((1, 2), link=[app.tasks.callback.s("a"), app.tasks.callback.s("b")])
    assert result.get(timeout=PATIENCE) == 3
    app.noted("callback a 3")
    app.noted("callback b 3")


def test_errbacks(app):
    result = app.tasks.fail.apply_async(link_error=[app.tasks.errback.s(), app.tasks.errback_new.s()])
    with pytest.raises(ValueError):
        result.get(timeout=PATIENCE)
    app.noted(f"errback {result.id}")
    app.noted(f"errback_new {result.id} ValueError('boom')")


def test_an_errback_of_the_newer_style_of_a_task_in_rust(app):
    if app.kind == "celery":
        pytest.skip("it runs no tasks in Rust")
    result = app.app.send_task("rust.fail", args=["boom"], queue="pyapp", link_error=app.tasks.errback_new.s())
    with pytest.raises(ValueError):
        result.get(timeout=PATIENCE)
    app.noted(f"errback_new {result.id} ValueError('boom')")


def test_a_chain_fails_as_a_whole(app):
    result = chain(app.tasks.fail.s(), app.tasks.echo.s())()
    with pytest.raises(ValueError):
        result.get(timeout=PATIENCE)
    until(lambda: result.state == "FAILURE", "the last step has no end")


def test_a_chord_fails_with_its_header(app):
    result = chord([app.tasks.add.s(1, 1), app.tasks.fail.s()], app.tasks.xsum.s())()
    with pytest.raises(Exception, match="boom"):
        result.get(timeout=PATIENCE)


def test_stamps(app):
    signature = app.tasks.who.s()
    signature.stamp(color="red")
    assert app.get(signature)["stamps"] == {"color": "red"}


# Time limits, losses.


def test_a_soft_limit_can_be_caught(app):
    assert app.get(app.tasks.soft.s()) == "cleaned up"


def test_a_soft_limit_that_is_not_caught(app):
    with pytest.raises(Exception) as caught:
        app.get(app.tasks.soft_uncaught.s())
    assert type(caught.value).__name__ == "SoftTimeLimitExceeded"


@pytest.mark.parametrize("task", ["hard", "loop_in_c"])
def test_a_hard_limit(app, task):
    result = app.app.signature(f"pyapp.{task}").apply_async(link_error=app.tasks.errback.s())
    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=PATIENCE)
    app.noted(f"errback {result.id}")
    assert app.get(app.tasks.add.s(1, 1)) == 2, "there is another child"


def test_limits_of_a_call(app):
    with pytest.raises(TimeLimitExceeded):
        app.tasks.slow.apply_async((60, "limited"), time_limit=1).get(timeout=PATIENCE)


@pytest.mark.parametrize("task", ["die", "die_late", "leave"])
def test_a_lost_child(app, task):
    result = app.app.signature(f"pyapp.{task}").apply_async(link_error=app.tasks.errback.s())
    with pytest.raises(WorkerLostError):
        result.get(timeout=PATIENCE)
    app.noted(f"errback {result.id}")
    assert app.get(app.tasks.add.s(1, 1)) == 2


def test_a_lost_child_in_a_chord(app):
    result = chord([app.tasks.add.s(1, 1), app.tasks.die.s()], app.tasks.xsum.s())()
    with pytest.raises(Exception, match="WorkerLostError|exited prematurely"):
        result.get(timeout=PATIENCE)


def test_a_lost_child_s_task_runs_again_where_that_is_wanted(app):
    assert app.get(app.tasks.die_once.s()) == "survived"
    assert app.place.notes().count("died once") == 1


@pytest.mark.skipif(CELERY < (5, 7), reason="older ones cannot")
def test_a_lost_child_s_task_is_retried_where_that_is_wanted(app):
    assert app.get(app.tasks.die_and_retry.s()) == 1


@pytest.mark.skipif(CELERY < (5, 7), reason="older ones do not call them")
def test_hooks_of_a_hard_limit(app):
    result = app.tasks.watched_hard.delay()
    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=PATIENCE)
    app.noted(f"after_return {result.id} FAILURE")
    app.note_that(f"on_failure {result.id} TimeLimitExceeded")


# Remote control.


def test_revoked_while_it_waits(app):
    blockers = [app.tasks.slow.delay(1.5, f"block {n}") for n in range(2)]
    for n in range(2):
        app.noted(f"begin block {n}")
    result = app.tasks.callback.delay("v", "never")
    result.revoke()
    with pytest.raises(TaskRevokedError):
        result.get(timeout=PATIENCE)
    for blocker in blockers:
        blocker.get(timeout=PATIENCE)
    app.get(app.tasks.add.s(1, 1))
    assert "callback never v" not in app.place.notes()


@pytest.mark.signals
def test_terminated_while_it_runs(app):
    result = app.tasks.slow.apply_async((60, "terminated"))
    app.noted("begin terminated")
    result.revoke(terminate=True)
    with pytest.raises(TaskRevokedError, match="terminated"):
        result.get(timeout=PATIENCE)
    app.noted(f"signal revoked {result.id} True False")
    assert "end terminated" not in app.place.notes()
    assert app.get(app.tasks.add.s(1, 1)) == 2


def test_terminated_by_a_signal_of_choice(app):
    result = app.tasks.slow.apply_async((60, "killed"))
    app.noted("begin killed")
    result.revoke(terminate=True, signal="SIGKILL")
    with pytest.raises(TaskRevokedError, match="terminated"):
        result.get(timeout=PATIENCE)


def test_inspect(app, tmp_path):
    result = app.tasks.progress.delay(str(tmp_path / "gate"))
    until(lambda: result.state == "PROGRESS", "the state is not there")
    (active,) = app.inspect().active()[NODE]
    assert active["id"] == result.id and active["name"] == "pyapp.progress" and active["hostname"] == NODE
    assert active["acknowledged"] is True and active["worker_pid"] not in (None, app.worker.pid)
    assert app.inspect().query_task(result.id)[NODE][result.id][0] == "active"
    stats = app.inspect().stats()[NODE]
    assert active["worker_pid"] in stats["pool"]["processes"] and len(stats["pool"]["processes"]) == 2
    assert stats["pool"]["max-concurrency"] == 2 and stats["total"]["pyapp.progress"] >= 1
    (tmp_path / "gate").touch()
    result.get(timeout=PATIENCE)
    registered = app.inspect().registered()[NODE]
    assert "pyapp.add" in registered and "pyapp.limited [rate_limit=2/s]" in registered
    assert not any(name.startswith("celery.") for name in registered)
    (queue,) = app.inspect().active_queues()[NODE]
    assert queue["name"] == "pyapp"


def test_the_pool_grows_and_shrinks(app):
    def processes():
        return len(app.inspect().stats()[NODE]["pool"]["processes"])

    app.app.control.pool_grow(1, destination=[NODE], reply=True)
    until(lambda: processes() == 3, "it has not grown")
    app.app.control.pool_shrink(1, destination=[NODE], reply=True)
    until(lambda: processes() == 2, "it has not shrunk")
    assert app.get(app.tasks.add.s(1, 1)) == 2


def test_limits_are_changed_by_remote_control(app):
    if app.kind == "celery":
        pytest.skip("Celery answers that it has changed them, and goes on with those of its start")
    (answer,) = app.app.control.time_limit("pyapp.slow", soft=30, hard=1, destination=[NODE], reply=True)
    assert answer[NODE] == {"ok": "time limits set successfully"}
    with pytest.raises(TimeLimitExceeded):
        app.get(app.tasks.slow.s(60, "changed"))
    app.app.control.time_limit("pyapp.slow", soft=None, hard=None, destination=[NODE], reply=True)


def test_rate_limits(app):
    times = sorted(group(app.tasks.limited.s(n) for n in range(4))().get(timeout=PATIENCE))
    assert times[-1] - times[0] >= 1


@pytest.fixture
def heard(app):
    listener = Listener(app.place)
    app.app.control.enable_events(destination=[NODE], reply=True)
    until(lambda: any(event["hostname"] == NODE for event in listener.events), "the worker should be heard of")
    yield listener
    listener.stop()
    app.app.set_current()
    app.app.control.disable_events(destination=[NODE], reply=True)


def test_events(app, heard):
    succeeded, failed, retried = app.tasks.add.delay(1, 1), app.tasks.fail.delay(), app.tasks.retry.delay(1)
    assert heard.until(succeeded.id, "task-succeeded") == ["task-received", "task-started", "task-succeeded"]
    assert heard.until(failed.id, "task-failed") == ["task-received", "task-started", "task-failed"]
    # Celery tells of ends before starts, now and then.
    kinds = ["task-received", "task-retried", "task-started", "task-started", "task-succeeded"]
    until(lambda: sorted(set(heard.types(retried.id))) == sorted(set(kinds)), f"not all of {kinds}")
    event = heard.of(succeeded.id)[-1]
    assert event["result"] == "2" and event["runtime"] >= 0 and event["hostname"] == NODE
    event = heard.of(failed.id)[-1]
    assert event["exception"] == "ValueError('boom')" and "raise ValueError(message)" in event["traceback"]


def test_events_of_what_the_worker_ends(app, heard):
    hard, lost = app.tasks.hard.delay(), app.tasks.die.delay()
    heard.until(hard.id, "task-failed")
    if app.kind == "celeriac":
        # Celery shows a wrapper of its own.
        assert "TimeLimitExceeded" in heard.of(hard.id)[-1]["exception"]
    heard.until(lost.id, "task-failed")
    if app.kind == "celeriac":
        assert "signal 9 (SIGKILL)" in heard.of(lost.id)[-1]["exception"]


# Celery takes the next loss of a process for a termination where one has lived through a signal: after all the others.


@pytest.mark.signals
@pytest.mark.parametrize("name", ["SIGUSR2", "USR2", signal.SIGUSR2.value])
def test_a_signal_of_choice_reaches_the_task(app, name):
    word = f"signalled by {name}"
    result = app.tasks.hears.delay(word)
    app.noted(f"begin {word}")
    result.revoke(terminate=True, signal=name)
    app.noted(f"heard {signal.SIGUSR2.value} {word}")
    with pytest.raises(TaskRevokedError, match="terminated"):
        result.get(timeout=PATIENCE)
    app.noted(f"revoked by {result.id} {signal.SIGUSR2.value}")


def test_sigusr1_interrupts_a_task_as_a_soft_limit_does(app):
    result = app.tasks.interruptible.delay("interrupted")
    app.noted("begin interrupted")
    result.revoke(terminate=True, signal="SIGUSR1")
    app.noted("cleaned up interrupted")
    # Celery's main process stores REVOKED, and the child how the task ended: whichever comes last stands.
    ends = ["FAILURE"] if app.kind == "celeriac" else ["FAILURE", "REVOKED"]
    until(lambda: result.state in ends, "it has not ended as the task did")
    if result.state == "FAILURE":
        assert type(result.result).__name__ == "SoftTimeLimitExceeded"


@pytest.mark.celeriac
def test_a_signal_of_choice_by_celeriac_s_command(app):
    if app.kind == "celery":
        pytest.skip("is about celeriac alone")
    result = app.tasks.hears.delay("commanded")
    app.noted("begin commanded")
    ran = app.place.celeriac("revoke", result.id, "--terminate", "--signal", "SIGUSR2")
    assert ran.returncode == 0, ran
    app.noted(f"heard {signal.SIGUSR2.value} commanded")
    until(lambda: result.state == "REVOKED", "it goes on")


# The worker itself.


def test_signals_of_the_worker(app):
    notes = app.place.notes()
    order = [f"celeryd_init {NODE} pyapp", "worker_init pyapp True", f"celeryd_after_setup {NODE}", "worker_ready"]
    assert [note for note in notes if note in order] == order
    (creator,) = {note.split()[1] for note in notes if note.startswith("worker_before_create_process")}
    assert int(creator) not in app.inspect().stats()[NODE]["pool"]["processes"]
    pids = app.inspect().stats()[NODE]["pool"]["processes"]
    for pid in pids:
        app.noted(f"worker_process_init {pid}")
