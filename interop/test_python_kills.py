"""What becomes of the tasks of a Python application when processes are killed: the worker, the one that forks, children."""

import contextlib
import os
import pathlib
import re
import signal
import time

import pytest
from celery import chord
from celery.exceptions import NotRegistered, TaskRevokedError, TimeLimitExceeded, WorkerLostError

from conftest import PATIENCE, open_place, until
from test_python_app import NODE, UNKNOWN, App, reachable_by

pytestmark = pytest.mark.celeriac
OTHER = "other@interop"
# Leases that a test can wait for.
SETTINGS = "visibility_timeout = 2\nworker_restore_interval = 0.5\nworker_revoke_grace = 0.5\n" + UNKNOWN


@pytest.fixture
def app(server, tmp_path_factory, request):
    opened = open_place(server, tmp_path_factory, request, "kills")
    place = next(opened)
    place.reachable_by = reachable_by
    (place.folder / "celeriac.toml").write_text(SETTINGS)
    os.environ["INTEROP_NOTES"] = str(place.notes_file)
    app = App(place, "celeriac")
    app.app.set_current()
    yield app
    app.app.close()
    next(opened, None)


def lives(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid, patience=PATIENCE):
    return until(lambda: not lives(pid), f"{pid} still lives", patience)


def stats(app, node=NODE):
    return app.app.control.inspect(destination=[node], timeout=10).stats()[node]["pool"]


def kill(worker):
    """The supervisor alone: whatever it has started must see to its own end."""
    os.kill(worker.pid, signal.SIGKILL)
    worker.process.wait(PATIENCE)


@pytest.fixture(params=["prefork", "threads", "asyncio"])
def pool(request):
    return request.param


@pytest.fixture
def gate(tmp_path):
    return tmp_path / "gate"


def early(app, pool, word, **options):
    """A task that runs and would not end, of the kind that the pool is for."""
    result = (app.tasks.nap if pool == "asyncio" else app.tasks.slow).apply_async((3600, word), **options)
    app.noted(f"begin {word}")
    return result


def late(app, pool, word, gate):
    """One with late acknowledgement, that runs until its gate is open."""
    task = app.tasks.holds_late_on_loop if pool == "asyncio" else app.tasks.holds_late
    result = task.delay(word, str(gate))
    app.noted(f"begin {word}")
    return result


def test_children_die_with_the_worker(app, pool):
    worker = app.start("-P", pool)
    app.tasks.with_grandchild.apply_async(time_limit=600)
    grandchild = int(app.note_that("grandchild"))
    started = stats(app)
    pids = [*started["processes"], started["zygote"], grandchild]
    assert all(map(lives, pids))
    kill(worker)
    for pid in pids:
        gone(pid)


def test_what_a_killed_worker_leaves_on_the_disk_goes_with_the_next(app, tmp_path):
    def folders():
        return set(tmp_path.iterdir())

    worker = app.start(env={"TMPDIR": str(tmp_path)})
    [left] = folders()
    kill(worker)
    assert folders() == {left}
    other = app.start(node=OTHER, env={"TMPDIR": str(tmp_path)})
    [kept] = folders()
    assert kept != left
    assert app.get(app.tasks.add.s(1, 1)) == 2
    assert other.stop() == 0
    assert not folders()


def test_late_tasks_of_a_killed_worker_run_elsewhere(app, pool, gate):
    worker = app.start("-P", pool)
    result = late(app, pool, "late", gate)
    kill(worker)
    gate.touch()
    app.start("-P", pool, node=OTHER)
    assert result.get(timeout=PATIENCE) == "late"
    assert app.place.notes().count("begin late") == 2


def test_early_tasks_of_a_killed_worker_fail_and_say_so(app, pool):
    worker = app.start("-P", pool)
    result = early(app, pool, "early", link_error=app.tasks.errback.s())
    slow = app.tasks.nap if pool == "asyncio" else app.tasks.slow
    part = chord([slow.s(3600, "part"), app.tasks.add.s(1, 1)], app.tasks.xsum.s())()
    app.noted("begin part")
    kill(worker)
    app.start("-P", pool, node=OTHER)
    with pytest.raises(WorkerLostError):
        result.get(timeout=PATIENCE)
    app.noted(f"errback {result.id}")
    with pytest.raises(Exception, match="lost"):
        part.get(timeout=PATIENCE)
    assert app.place.notes().count("begin early") == 1


def test_a_killed_worker_leaves_nothing_behind_by_default(app, gate):
    """With the settings that everybody has: whatever its tasks were at, all of them end."""
    (app.place.folder / "celeriac.toml").unlink()
    worker = app.start(concurrency=4)
    tracked = app.tasks.tracked.delay(str(gate))
    until(lambda: tracked.state == "STARTED", "the state is not there")
    ran_early = early(app, "prefork", "early", link_error=app.tasks.errback.s())
    ran_late = late(app, "prefork", "late", gate)
    progress = app.tasks.progress.delay(str(gate))
    until(lambda: progress.state == "PROGRESS", "the state is not there")
    waits = [app.tasks.add.delay(n, n) for n in range(4)]
    processes = stats(app)["processes"]
    kill(worker)
    killed = time.monotonic()
    for pid in processes:
        gone(pid)
    gate.touch()
    app.start(node=OTHER)
    until(lambda: app.place.notes().count("begin late") == 2, "nobody has begun it again")
    print(f"begun elsewhere {time.monotonic() - killed:.1f} s after its worker was killed")
    assert ran_late.get(timeout=PATIENCE) == "late"
    assert [result.get(timeout=PATIENCE) for result in waits] == [0, 2, 4, 6]
    for result in [tracked, ran_early, progress]:
        with pytest.raises(WorkerLostError):
            result.get(timeout=PATIENCE)
        assert result.state == "FAILURE"
    app.noted(f"errback {ran_early.id}")
    assert app.place.notes().count("begin early") == 1
    until(lambda: app.place.redis.hlen("unacked") == 0, "something is still held")


def test_a_task_that_runs_long_runs_once(app):
    """Six times as long as a lease, and as the time after which the worker of Celery's beside them restores what nobody has
    vouched for."""
    (app.place.folder / "celeriac.toml").write_text(SETTINGS.replace("visibility_timeout = 2", "visibility_timeout = 5"))
    env = {"INTEROP_VISIBILITY": "5"}
    for node in (NODE, OTHER):
        app.start(node=node, env=env)
    words = [f"long {n}" for n in range(4)]
    results = [(app.tasks.slow_late if n % 2 else app.tasks.slow).delay(30, word) for n, word in enumerate(words)]
    for word in words:
        app.noted(f"begin {word}")
    # It has room to run what it would restore.
    app.kind = "celery"
    app.start(node="neighbour@interop", concurrency=4, env=env)
    assert app.get(app.tasks.add.s(1, 1)) == 2
    assert [result.get(timeout=30 + PATIENCE) for result in results] == words
    notes = app.place.notes()
    assert [notes.count(f"{what} {word}") for word in words for what in ("begin", "end")] == [1] * 8
    until(lambda: app.place.redis.hlen("unacked") == 0, "something is still held")


def test_what_is_held_ahead_does_not_wait_for_a_long_task(app):
    """While tasks are short a worker holds some more than it runs."""
    first = app.start(concurrency=1)
    for result in [app.tasks.add.delay(n, 1) for n in range(200)]:
        result.get(timeout=PATIENCE)
    app.tasks.slow_late.delay(3600, "in the way")
    results = [app.tasks.add.delay(n, 1) for n in range(4)]
    app.noted("begin in the way")
    second = app.start(node=OTHER, concurrency=1)
    assert [result.get(timeout=PATIENCE) for result in results] == [1, 2, 3, 4]
    # They would wait for an hour.
    kill(first)
    kill(second)


def test_poison_is_bounded(app):
    app.start()
    result = app.app.signature("pyapp.die_always").delay()
    with pytest.raises(WorkerLostError):
        result.get(timeout=PATIENCE)
    assert app.place.notes().count("died again") == 3
    ran = app.place.celeriac("dead", "list")
    assert result.id in ran.stdout, ran


@pytest.mark.parametrize("task", ["with_grandchild", "loop_in_c"])
def test_a_hard_limit_takes_the_whole_group(app, task):
    app.start()
    result = app.app.signature(f"pyapp.{task}").delay()
    pid = int(app.note_that("grandchild" if task == "with_grandchild" else "loop"))
    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=PATIENCE)
    gone(pid)


def test_a_revoked_task_stops_with_all_that_it_has_started(app):
    app.start()
    result = app.tasks.with_grandchild.apply_async(time_limit=600)
    grandchild = int(app.note_that("grandchild"))
    result.revoke(terminate=True)
    with pytest.raises(TaskRevokedError):
        result.get(timeout=PATIENCE)
    gone(grandchild)


def test_a_task_that_will_not_hear_is_killed(app):
    app.start()
    result = app.app.signature("pyapp.deaf").delay()
    pid = int(app.note_that("deaf"))
    result.revoke(terminate=True)
    with pytest.raises(TaskRevokedError):
        result.get(timeout=PATIENCE)
    gone(pid)


def test_an_idle_child_that_is_killed_costs_nothing(app):
    app.start(concurrency=2)
    for _ in range(3):
        for pid in stats(app)["processes"]:
            os.kill(pid, signal.SIGKILL)
        assert app.get(app.tasks.add.s(1, 1)) == 2
    until(lambda: len(stats(app)["processes"]) == 2, "the pool is not full again")


@pytest.mark.parametrize("pool, how", [("prefork", "ends"), ("prefork", "hangs"), ("threads", "hangs"), ("asyncio", "ends")])
def test_a_task_goes_elsewhere_from_a_worker_whose_processes_do_not_come_up(app, pool, how, tmp_path):
    barren = tmp_path / "barren"
    (app.place.folder / "celeriac.toml").write_text(SETTINGS + "worker_seat_timeout = 0.5\n")
    barren.write_text(how)
    worker = app.start("-P", pool, concurrency=1, env={"INTEROP_BARREN": str(barren)})
    result = app.tasks.add.delay(1, 1)
    until(lambda: "it goes back; waiting for one" in worker.text(), "the worker keeps it")
    until(lambda: app.place.redis.llen("pyapp") == 1, "it does not go back")
    other = app.start(node=OTHER, concurrency=1)
    assert result.get(timeout=PATIENCE) == 2
    assert other.stop() == 0
    # The worker takes tasks as soon as it has processes.
    waits = app.tasks.add.delay(2, 2)
    barren.unlink()
    assert waits.get(timeout=PATIENCE) == 4
    if how == "hangs":
        assert "worker_proc_alive_timeout" in worker.text()
    assert worker.stop() == 0


def test_an_end_that_no_process_can_store_is_left_to_another_worker(app, tmp_path):
    barren = tmp_path / "barren"
    (app.place.folder / "celeriac.toml").write_text(SETTINGS + "worker_seat_timeout = 0.5\n")
    worker = app.start(concurrency=1, env={"INTEROP_BARREN": str(barren)})
    result = early(app, "prefork", "early", link_error=app.tasks.errback.s())
    app.start(node=OTHER, concurrency=1)
    barren.write_text("ends")
    [child] = stats(app)["processes"]
    os.kill(child, signal.SIGKILL)
    with pytest.raises(WorkerLostError):
        result.get(timeout=PATIENCE)
    app.noted(f"errback {result.id}")
    assert "which is left to another worker" in worker.text() and worker.lives()
    assert app.place.notes().count("begin early") == 1
    assert worker.stop() == 0


def test_without_the_zygote_the_worker_ends(app, gate):
    worker = app.start()
    orphan = late(app, "prefork", "orphan", gate)
    pool = stats(app)
    os.kill(pool["zygote"], signal.SIGKILL)
    assert worker.process.wait(PATIENCE) == 1
    for pid in pool["processes"]:
        gone(pid)
    gate.touch()
    app.start(node=OTHER)
    assert orphan.get(timeout=PATIENCE) == "orphan"


def test_a_warm_shutdown_waits(app, gate):
    worker = app.start()
    result = app.tasks.holds.delay("last", str(gate))
    app.noted("begin last")
    pool = stats(app)
    worker.process.send_signal(signal.SIGTERM)
    app.noted(f"worker_shutting_down {NODE} SIGTERM Warm 0")
    gate.touch()
    assert worker.process.wait(PATIENCE) == 0
    assert result.get(timeout=PATIENCE) == "last"
    for pid in pool["processes"]:
        assert f"worker_process_shutdown {pid}" in app.place.notes()
        assert not lives(pid)
    assert "worker_shutdown" in app.place.notes()


def test_sigterm_again_changes_nothing(app):
    worker = app.start()
    result = app.tasks.slow.delay(3, "told twice")
    app.noted("begin told twice")
    for _ in range(2):
        worker.process.send_signal(signal.SIGTERM)
        app.noted(f"worker_shutting_down {NODE} SIGTERM Warm 0")
    assert worker.stop() == 0
    assert result.get(timeout=PATIENCE) == "told twice"
    assert app.place.notes().count(f"worker_shutting_down {NODE} SIGTERM Warm 0") == 1


def soft(app, gate, worker):
    """A task that would end within the time a soft shutdown has, and one that would not."""
    brief = app.tasks.progress.delay(str(gate))
    long = app.tasks.slow_late.delay(30, "soft")
    until(lambda: brief.state == "PROGRESS", "the state is not there")
    app.noted("begin soft")
    return brief, long


@pytest.mark.parametrize("env, number", [({}, signal.SIGQUIT), ({"REMAP_SIGTERM": "SIGQUIT"}, signal.SIGTERM)])
def test_a_soft_shutdown_waits_and_then_hands_back(app, tmp_path, env, number):
    worker = app.start(env={"INTEROP_SOFT": "2"} | env)
    brief, long = soft(app, tmp_path / "gate", worker)
    worker.process.send_signal(number)
    app.noted(f"worker_shutting_down {NODE} {signal.Signals(number).name} Cold 1")
    (tmp_path / "gate").touch()
    assert brief.get(timeout=PATIENCE) == "done"
    worker.process.wait(PATIENCE)
    app.start(node=OTHER)
    # It is handed back at once, and waits for no lease.
    until(lambda: app.place.notes().count("begin soft") == 2, "nobody has begun it again")
    long.revoke(terminate=True)


def test_a_second_sigquit_does_not_wait(app):
    worker = app.start(env={"INTEROP_SOFT": "3600"})
    app.tasks.slow_late.delay(3600, "impatient")
    app.noted("begin impatient")
    for how in ["waits", "ends"]:
        assert worker.lives(), how
        worker.process.send_signal(signal.SIGQUIT)
        app.noted(f"worker_shutting_down {NODE} SIGQUIT Cold 1")
    worker.process.wait(PATIENCE)
    other = app.start(node=OTHER)
    until(lambda: app.place.notes().count("begin impatient") == 2, "nobody has begun it again")
    # It would wait for an hour.
    kill(other)


def test_a_deploy_that_kills_loses_nothing(app, gate):
    """As an orchestrator does it: SIGTERM, and SIGKILL to what is still there."""
    worker = app.start()
    ran_late = late(app, "prefork", "deployed", gate)
    ran_early = early(app, "prefork", "deployed early")
    worker.process.send_signal(signal.SIGTERM)
    app.noted(f"worker_shutting_down {NODE} SIGTERM Warm 0")
    waits = app.tasks.add.delay(1, 1)
    app.start(node=OTHER)
    assert waits.get(timeout=PATIENCE) == 2
    kill(worker)
    gate.touch()
    assert ran_late.get(timeout=PATIENCE) == "deployed"
    with pytest.raises(WorkerLostError):
        ran_early.get(timeout=PATIENCE)


def test_a_task_of_a_newer_release_waits_for_a_worker_that_has_it(app):
    app.start()
    app.start(node=OTHER, env={"INTEROP_NEWER": "1"})
    sent = [app.app.send_task("pyapp.newer", args=[n], queue="pyapp") for n in range(8)]
    assert [result.get(timeout=PATIENCE) for result in sent] == list(range(8))


def test_a_task_of_a_newer_release_is_kept_for_when_there_is_one(app):
    app.start()
    result = app.app.send_task("pyapp.newer", args=[7], queue="pyapp")
    with pytest.raises(NotRegistered):
        result.get(timeout=PATIENCE)
    app.start(node=OTHER, env={"INTEROP_NEWER": "1"})
    assert app.place.celeriac("dead", "retry", result.id).returncode == 0
    until(lambda: (app.meta(result.id) or {}).get("result") == 7, "it has not run")


def test_a_task_that_takes_too_much_memory_is_stopped(app):
    worker = app.start("--max-memory-per-child", "100000", "--memory-limit-per-child", "150000")
    bystander = app.tasks.progress.delay(str(app.place.folder / "gate"))
    until(lambda: bystander.state == "PROGRESS", "the state is not there")
    result = app.app.signature("pyapp.devour_early").delay()
    pid = int(app.note_that("devours"))
    with pytest.raises(WorkerLostError, match="out of memory") as lost:
        result.get(timeout=PATIENCE)
    # How much more than that it has had is the machine's affair.
    [had] = re.findall(r"killed with (\d+) KiB where 150000 KiB is the limit", str(lost.value))
    assert int(had) > 150_000
    gone(pid)
    assert app.get(app.tasks.add.s(1, 1)) == 2, "there is another child"
    (app.place.folder / "gate").touch()
    assert bystander.get(timeout=PATIENCE) == "done"
    assert worker.lives()


def families():
    """The parent of each process."""
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            yield int(stat.parent.name), int(stat.read_text().rsplit(")", 1)[1].split()[1])


def descendants(pid):
    found, parents = [pid], dict(families())
    for ancestor in found:
        found.extend(child for child, parent in parents.items() if parent == ancestor)
    return found


def memory_group():
    """Our own control group for memory, and what the bound of one is called; nothing where the system has none."""
    for line in pathlib.Path("/proc/self/cgroup").read_text().splitlines():
        _, kinds, path = line.split(":", 2)
        if "memory" in kinds.split(","):
            return pathlib.Path("/sys/fs/cgroup/memory" + path.rstrip("/")), "memory.limit_in_bytes"
        if not kinds and pathlib.Path("/sys/fs/cgroup/cgroup.controllers").exists():
            return pathlib.Path("/sys/fs/cgroup" + path.rstrip("/")), "memory.max"
    return None


@pytest.fixture
def want(app):
    """A control group with little memory, for processes to be put in."""
    own = memory_group()
    if own is None:
        pytest.skip("the system has no control groups for memory")
    parent, bound = own
    group = parent / f"celeriac-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made: {error}")
    try:
        try:
            (group / bound).write_text(str(200 << 20))
        except OSError as error:
            pytest.skip(f"no control group for memory can be made: {error}")
        yield group
    finally:
        for pid in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                (parent / "cgroup.procs").write_text(pid)
        until(lambda: not (group / "cgroup.procs").read_text().strip(), "somebody stays in the group")
        group.rmdir()


def test_a_task_that_the_system_kills_for_want_of_memory_is_named_so(app, want):
    worker = app.start(concurrency=1)
    for pid in descendants(worker.pid):
        (want / "cgroup.procs").write_text(str(pid))
    result = app.app.signature("pyapp.devour_early").delay()
    pid = int(app.note_that("devours"))
    with pytest.raises(WorkerLostError, match=r"signal 9 \(SIGKILL\), out of memory: the system killed it"):
        result.get(timeout=PATIENCE)
    gone(pid)
    assert worker.lives() and app.get(app.tasks.add.s(1, 1)) == 2, "there is another child"
    # That somebody killed it is another matter.
    result = app.app.signature("pyapp.devour_early").delay()
    until(lambda: len([note for note in app.place.notes() if note.startswith("devours")]) == 2, "it does not run")
    os.kill(int(app.note_that("devours")), signal.SIGKILL)
    with pytest.raises(WorkerLostError) as lost:
        result.get(timeout=PATIENCE)
    assert "out of memory" not in str(lost.value)


def test_a_task_that_always_takes_too_much_memory_is_bounded(app):
    # The limit is twice what a child may have after a task.
    app.start("--max-memory-per-child", "60000", concurrency=1)
    result = app.app.signature("pyapp.devour").delay()
    with pytest.raises(WorkerLostError):
        result.get(timeout=PATIENCE)
    assert len([note for note in app.place.notes() if note.startswith("devours")]) == 3
    assert result.id in app.place.celeriac("dead", "list").stdout


def test_a_cold_shutdown_hands_back(app, gate):
    worker = app.start()
    result = late(app, "prefork", "handed back", gate)
    worker.process.send_signal(signal.SIGQUIT)
    began = time.monotonic()
    worker.process.wait(PATIENCE)
    print(f"cold shutdown took {time.monotonic() - began:.2f} s")
    gate.touch()
    app.start(node=OTHER)
    assert result.get(timeout=PATIENCE) == "handed back"


def test_children_are_replaced_by_count(app):
    app.start("--max-tasks-per-child", "2", concurrency=1)
    runs = [app.get(app.tasks.who.s()) for _ in range(6)]
    pids = [run["pid"] for run in runs]
    assert len(set(pids)) == 3 and pids == sorted(pids, key=pids.index), pids
    # Log files are named by it. One that comes before the other has gone has the next place.
    assert {run["place"] for run in runs} <= {0, 1}, runs
    for pid in set(pids[:4]):
        app.noted(f"worker_process_shutdown {pid}")


def test_children_are_replaced_by_memory(app):
    app.start("--max-memory-per-child", "150000", concurrency=1)
    before = app.get(app.tasks.who.s())["pid"]
    assert app.get(app.tasks.who.s())["pid"] == before
    app.get(app.app.signature("pyapp.hoard", args=(200,)))
    after = app.get(app.tasks.who.s())["pid"]
    assert after != before
    gone(before)


def test_the_pool_follows_what_there_is_to_do(app, gate):
    app.start("--autoscale", "3,1")
    assert len(stats(app)["processes"]) == 1
    results = [app.tasks.holds.delay(f"scaled {n}", str(gate)) for n in range(3)]
    for n in range(3):
        app.noted(f"begin scaled {n}")
    assert len(stats(app)["processes"]) == 3
    gate.touch()
    for result in results:
        result.get(timeout=PATIENCE)


def test_what_tasks_import_is_shared_with_later_children(app):
    app.start("--max-tasks-per-child", "1", concurrency=1)
    assert app.get(app.app.signature("pyapp.imports")) is False, "the first one had to import it"
    until(lambda: app.get(app.app.signature("pyapp.imports")) is True, "the zygote has not learned")
