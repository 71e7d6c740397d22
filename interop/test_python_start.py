"""How an application is found and started, what is said at the start, and what is refused."""

import os
import re
import signal
import subprocess
import sys

import pytest

from conftest import CELERIAC, PATIENCE, free_port, open_place, until
from test_python_app import NODE, App, reachable_by
from test_python_kills import gone

pytestmark = pytest.mark.celeriac

SOURCE = """
import os
from celery import Celery

app = Celery("found", broker=os.environ["INTEROP_REDIS"], backend=os.environ["INTEROP_REDIS"])
app.conf.update({settings})


@app.task(name="found.add")
def add(x, y):
    return x + y
"""


@pytest.fixture
def place(server, tmp_path_factory, request):
    opened = open_place(server, tmp_path_factory, request, "start")
    place = next(opened)
    place.reachable_by = reachable_by
    yield place
    next(opened, None)


def write(place, name, settings=""):
    path = place.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(SOURCE.replace("{settings}", settings))
    return path


def command(place, *arguments, app="found", env=None):
    return subprocess.run(list(map(str, [CELERIAC, "-A", app, "--python", sys.executable, *arguments])),
                          cwd=place.folder, env=place.env(**(env or {})), capture_output=True, text=True,
                          timeout=PATIENCE)


def worker(place, *options, app="found", more=()):
    child = place.start(NODE, [CELERIAC, "-A", app, "--python", sys.executable, *more, "worker", "-n", NODE, "-c", 1,
                               "-l", "info", *options])
    until(lambda: "worker ready" in child.text() or not child.lives(), "the worker is not ready")
    return child


@pytest.mark.parametrize("file, name", [
    ("found.py", "found"),
    ("found.py", "found:app"),
    ("found.py", "found.app"),
    ("proj/celery.py", "proj"),
    ("proj/celery.py", "proj.celery"),
    ("proj/celery.py", "proj.celery:app"),
])
def test_an_application_is_found_as_celery_finds_it(place, file, name):
    path = write(place, file)
    if path.parent != place.folder:
        (path.parent / "__init__.py").touch()
    sent = command(place, "call", "found.add", "--args", "[2, 3]", app=name)
    assert sent.returncode == 0, sent.stderr
    child = worker(place, app=name)
    found = command(place, "result", sent.stdout.strip(), "--wait", app=name)
    assert found.stdout.strip() == "5", found
    text = child.text()
    for part in ["[config]", f".> transport:   redis://127.0.0.1:{place.server.port}", "concurrency: 1 (prefork)",
                 "[queues]", ".> celery ", "[tasks]", "  . found.add"]:
        assert part in text, text


def test_a_folder_to_work_in(place, tmp_path):
    (tmp_path / "elsewhere.py").write_text(SOURCE.replace("{settings}", ""))
    sent = command(place, "--workdir", tmp_path, "call", "found.add", app="elsewhere")
    assert sent.returncode == 0, sent.stderr


def test_what_cannot_be_imported_is_said_with_its_traceback(place):
    assert "No module named 'absent'" in (ran := command(place, "worker", app="absent")).stderr and ran.returncode == 2
    (place.folder / "wrong.py").write_text("import os\nraise RuntimeError('half-way')\n")
    ran = command(place, "worker", app="wrong")
    assert ran.returncode == 2 and "half-way" in ran.stderr and "wrong.py" in ran.stderr


def test_no_interpreter(place):
    ran = subprocess.run([str(CELERIAC), "-A", "x", "--python", "/no/such/python", "worker"], capture_output=True,
                         text=True, env=place.env(), timeout=PATIENCE)
    assert ran.returncode == 2 and "/no/such/python" in ran.stderr and "--python" in ran.stderr


def test_settings_without_effect_are_named(place):
    write(place, "found.py", "worker_direct=True, worker_state_db='x.db', beat_schedule={'a': {'task': 'found.add', "
                             "'schedule': 60}}")
    text = worker(place).text()
    for name in ["worker_direct", "worker_state_db", "beat_schedule"]:
        assert f'setting="{name}"' in text, text


def test_the_pool_is_the_application_s_own_choice(place):
    write(place, "found.py", "worker_pool='threads'")
    assert "concurrency: 1 (threads)" in worker(place).text()


def test_a_pool_of_the_application_s_that_there_is_not_is_refused(place):
    write(place, "found.py", "worker_pool='gevent'")
    child = worker(place)
    until(lambda: not child.lives(), "it goes on")
    assert "worker_pool gevent is not supported" in child.text() and "--pool may be prefork" in child.text()


@pytest.mark.parametrize("pool", ["threads", "asyncio"])
def test_each_pool_works_on_a_store_of_ours(place, tmp_path, pool):
    write(place, "found.py")
    store = ["-b", f"sqlite://{tmp_path}/tasks.db"]
    worker(place, "-P", pool, more=store)
    called = command(place, *store, "call", "found.add", "--args", "[2, 3]", "--wait")
    assert called.stdout.strip() == "5", called


def test_another_layout_of_keys_is_refused(place):
    write(place, "found.py", "broker_transport_options={'priority_steps': [0, 1], 'sep': ':'}")
    ran = command(place, "worker")
    assert ran.returncode == 2 and "priority_steps" in ran.stderr and "sep" in ran.stderr, ran.stderr


def test_prefixes_of_keys(place):
    write(place, "found.py", "broker_transport_options={'global_keyprefix': 'mine:'}, "
                             "result_backend_transport_options={'global_keyprefix': 'out:'}")
    worker(place)
    script = "import found; print(found.add.delay(2, 3).get(timeout=50))"
    ran = subprocess.run([sys.executable, "-c", script], cwd=place.folder, env=place.env(), capture_output=True,
                         text=True, timeout=PATIENCE)
    assert ran.stdout.strip() == "5", ran
    assert any(key.startswith(b"out:") for key in place.redis.keys("*celery-task-meta*"))


def test_queues(place):
    write(place, "found.py", "task_queues={'one': {}, 'two': {}, 'three': {}}, task_default_queue='one'")
    text = worker(place, "-X", "two").text()
    assert ".> one " in text and ".> three " in text and ".> two " not in text
    assert ".> two " in worker(place, "-Q", "two").text()


def test_another_result_backend(place, tmp_path):
    os.environ["INTEROP_BACKEND"] = f"file://{tmp_path}"
    os.environ["INTEROP_NOTES"] = str(place.notes_file)
    try:
        app = App(place, "celeriac")
        app.app.set_current()
        app.worker = app.start()
        assert app.get(app.tasks.add.s(2, 3)) == 5
        result = app.tasks.die.delay()
        until(lambda: result.state == "FAILURE", "the loss is not stored")
        assert any(tmp_path.iterdir()) and not place.redis.keys("celery-task-meta-*")
        app.app.close()
    finally:
        del os.environ["INTEROP_BACKEND"]
        sys.modules.pop("pyapp", None)


def test_spawned_children(place):
    os.environ["INTEROP_NOTES"] = str(place.notes_file)
    app = App(place, "celeriac")
    app.app.set_current()
    app.start("--start-method", "spawn")
    assert app.get(app.tasks.add.s(2, 3)) == 5
    result = app.tasks.die.delay()
    with pytest.raises(Exception, match="signal 9"):
        result.get(timeout=PATIENCE)
    assert app.get(app.tasks.add.s(2, 3)) == 5
    pool = app.inspect().stats()[NODE]["pool"]
    for pid in pool["processes"]:
        with open(f"/proc/{pid}/cmdline") as line:
            assert "spawned" in line.read()
    app.app.close()


def test_a_failing_start_of_children_is_told_and_tried_again(place):
    gate = place.folder / "gate"
    write(place, "found.py")
    with open(place.folder / "found.py", "a") as source:
        source.write(f"""

from celery.signals import worker_process_init


@worker_process_init.connect
def start(**_):
    if not os.path.exists({str(gate)!r}):
        os._exit(9)
""")
    child = worker(place)
    until(lambda: "did not come up" in child.text() and "exitcode 9" in child.text(), "nothing is said")
    sent = command(place, "call", "found.add", "--args", "[2, 3]")
    gate.touch()
    assert command(place, "result", sent.stdout.strip(), "--wait").stdout.strip() == "5"


def test_threads_where_children_are_forked_are_named(place):
    write(place, "found.py")
    with open(place.folder / "found.py", "a") as source:
        source.write("""

import _thread, threading, time

threading.Thread(target=time.sleep, args=(600,), name="poller-of-flags", daemon=True).start()
_thread.start_new_thread(time.sleep, (600,))
""")
    child = worker(place)
    [line] = until(lambda: re.findall(".*threads are alive.*", child.text()), "nothing is said")
    assert "ERROR" in line and "poller-of-flags" in line and "which Python does not know" in line and "worker_process_init" in line


# Beat beside the worker.

BEAT = """
from datetime import timedelta

app.conf.beat_schedule = {{"tick": {{"task": "found.tick", "schedule": timedelta(seconds=0.3)}}}}
app.conf.beat_max_loop_interval = 0.3


@app.task(name="found.tick")
def tick():
    with open(os.environ["INTEROP_NOTES"], "a") as notes:
        notes.write("tick\\n")
"""


def ticks(place, more=2):
    """Waits until beat has sent some."""
    had = place.notes().count("tick")
    return until(lambda: place.notes().count("tick") >= had + more, "nothing is sent by the schedule")


def beat_pid(child):
    return int(until(lambda: re.findall(r"beat started pid=(\d+)", child.text()), "beat has not started")[-1])


@pytest.fixture
def scheduled(place):
    path = write(place, "found.py")
    with open(path, "a") as source:
        source.write(BEAT.format())
    return place


@pytest.mark.parametrize("kind", ["celery", "celeriac"])
def test_beat_beside_the_worker(scheduled, kind):
    place, options = scheduled, ["-B", "-s", scheduled.folder / "when"]
    if kind == "celery":
        child = place.start(NODE, [sys.executable, "-m", "celery", "-A", "found", "worker", "-n", NODE, "-c", 1, *options])
    else:
        child = worker(place, *options)
    ticks(place)
    child.stop()
    assert child.process.returncode == 0
    assert any(place.folder.glob("when*"))
    assert 'setting="beat_schedule"' not in child.text()


def test_beat_is_started_again_and_ends_with_the_worker(scheduled):
    child = worker(scheduled, "-B")
    ticks(scheduled)
    first = beat_pid(child)
    os.kill(first, signal.SIGKILL)
    until(lambda: beat_pid(child) != first, "beat is not started again")
    ticks(scheduled)
    second = beat_pid(child)
    os.kill(child.pid, signal.SIGKILL)
    child.process.wait(PATIENCE)
    gone(second)
    # It has gone in an orderly way, and kept what it knows.
    assert any(scheduled.folder.glob("celerybeat-schedule*"))


def test_beat_that_cannot_reach_the_store_is_refused(scheduled, tmp_path):
    refused = command(scheduled, "-b", f"sqlite://{tmp_path}/tasks.db", "worker", "-B")
    assert refused.returncode == 2, refused
    assert "--beat is not supported here" in refused.stderr and "celeriac+http://" in refused.stderr


def test_beat_reaches_a_store_of_celeriac_s_through_a_server(scheduled):
    place, port = scheduled, free_port()
    address = f"celeriac+http://127.0.0.1:{port}"
    source = (place.folder / "found.py").read_text().replace('os.environ["INTEROP_REDIS"]', repr(address))
    (place.folder / "found.py").write_text(source)
    place.start("server", [CELERIAC, "serve", "--roles", "web", "--bind", f"127.0.0.1:{port}"])
    child = worker(place, "-B")
    ticks(place)
    assert child.stop() == 0
