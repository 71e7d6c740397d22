"""celeriac as the client: its command line and its canvas send, Python's workers run."""

import datetime
import json

import pytest
from celery import chain, group
from celery.exceptions import TaskRevokedError
from celery.result import GroupResult

from conftest import CELERY, PATIENCE, PYTHON_NODE, until

pytestmark = pytest.mark.celeriac


def call(place, task, *args, options=(), code=0, kwargs=None):
    """`celeriac call --wait`, and what it prints of the end."""
    ran = place.celeriac("--json", "call", task, "--args", json.dumps(list(args)), "--kwargs", json.dumps(kwargs or {}),
                         "--wait", "--timeout", str(PATIENCE), *options)
    assert ran.returncode == code, (ran.stdout, ran.stderr)
    return json.loads(ran.stdout)


def test_a_value_arrives(python):
    ended = call(python, "py.add", 2, 3)
    assert (ended["state"], ended["result"]) == ("SUCCESS", 5)
    assert call(python, "py.add", 2, kwargs={"y": 4})["result"] == 6
    shown = python.celeriac("call", "py.echo", "--args", '["ø"]', "--wait")
    assert json.loads(shown.stdout) == "ø"


def test_python_sees_the_same_result(python):
    task_id = call(python, "py.add", 2, 3)["id"]
    result = python.app.AsyncResult(task_id)
    assert (result.get(timeout=PATIENCE), result.name, result.queue) == (5, "py.add", "python")


def test_an_error_is_told_and_is_the_exit_code(python):
    ended = call(python, "py.fail", "boom", code=1)
    assert ended["state"] == "FAILURE"
    assert ended["result"]["exc_type"] == "ValueError" and ended["result"]["exc_message"] == ["boom"]
    assert "ValueError: boom" in ended["traceback"]
    shown = python.celeriac("call", "py.fail", "--args", '["boom"]', "--wait")
    assert "ValueError: boom" in shown.stdout and shown.returncode == 1


def test_what_python_sent_is_looked_at(python):
    result = python.send("py.add", 2, 3)
    ran = python.celeriac("--json", "result", result.id, "--wait")
    assert json.loads(ran.stdout)["result"] == 5 and ran.returncode == 0


def test_a_retry_is_waited_for(python):
    assert call(python, "py.retry", 2, 0.2)["result"] == 2


def test_a_countdown_is_waited_for(python):
    before = datetime.datetime.now(datetime.timezone.utc)
    ended = call(python, "py.add", 1, 2, options=["--countdown", "1"])
    done = datetime.datetime.fromisoformat(ended["date_done"].replace("Z", "+00:00"))
    assert ended["result"] == 3 and done >= before + datetime.timedelta(seconds=1)


def test_what_has_expired_is_revoked(python):
    ended = call(python, "py.add", 1, 2, options=["--expires", "2020-01-01T00:00:00Z"], code=1)
    assert ended["state"] == "REVOKED" and ended["result"]["exc_message"] == ["expired"]


def test_a_state_of_the_applications_own_shows(python):
    done = python.folder / "client-progress-done"
    sent = python.celeriac("call", "py.progress", "--args", json.dumps([str(done)])).stdout.strip()

    def shown():
        return json.loads(python.celeriac("--json", "result", sent).stdout)

    until(lambda: shown()["state"] == "PROGRESS", "the state should become PROGRESS")
    assert shown()["result"] == {"current": 1, "total": 2}
    done.touch()
    assert json.loads(python.celeriac("--json", "result", sent, "--wait").stdout)["result"] == "done"


def test_the_message_has_all_that_python_expects(python):
    told = call(python, "py.context", "v", options=["--priority", "3"])["result"]
    assert told["root_id"] == told["id"] and told["parent_id"] is None
    assert told["queue"] == "python" and told["origin"].startswith("gen") and told["value"] == "v"


def revoke(place, task_id, *options):
    """`celeriac revoke`, and what it says became of the task."""
    ran = place.celeriac("--json", "revoke", task_id, *options)
    assert ran.returncode == 0, (ran.stdout, ran.stderr)
    return json.loads(ran.stdout)


def sent_by(place, side, task, *args, **options):
    """Sends one task from one side, and returns its id."""
    if side == "py":
        return place.send(task, *args, **options).id
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    return place.celeriac("call", task, "--args", json.dumps(list(args)), *flags).stdout.strip()


@pytest.mark.parametrize("side", ["py", "celeriac"])
def test_what_python_runs_is_stopped(python, side):
    task_id = sent_by(python, side, "py.slow", 3600, f"run for {side}")
    python.noted(f"run for {side}")
    told = revoke(python, task_id)
    # Of what Python has sent to Python, and acknowledged already, nothing is known here.
    assert told["was"] == ("noted" if side == "py" else "elsewhere") and "1 worker was told" in told["text"]
    active = python.app.control.inspect(timeout=PATIENCE, destination=[PYTHON_NODE]).active()[PYTHON_NODE]
    assert task_id in [running["id"] for running in active], "it goes on"
    told = revoke(python, task_id, "--terminate")
    assert (told["was"], told["text"]) == ("terminating", f"was taken by {PYTHON_NODE}, which stops it")
    with pytest.raises(TaskRevokedError, match="terminated"):
        python.app.AsyncResult(task_id).get(timeout=PATIENCE)
    assert revoke(python, task_id, "--terminate")["was"] == "finished"


@pytest.mark.parametrize("side", ["py", "celeriac"])
def test_what_python_holds_is_revoked(python, side):
    # No worker of ours consumes from there, so Python's waits with it, as with all that Python sends.
    task_id = sent_by(python, side, "py.slow", 0, f"held for {side}", countdown=5)
    inspect = python.app.control.inspect(timeout=PATIENCE, destination=[PYTHON_NODE])
    until(lambda: task_id in [held["request"]["id"] for held in inspect.scheduled()[PYTHON_NODE]],
          "Python's worker should hold it")
    told = revoke(python, task_id)
    # It is found among what Celery's workers hold, whoever has sent it.
    assert told["was"] == "elsewhere" and "1 worker was told" in told["text"]
    with pytest.raises(TaskRevokedError, match="revoked"):
        python.app.AsyncResult(task_id).get(timeout=PATIENCE)
    until(lambda: not inspect.scheduled()[PYTHON_NODE], "its time should come")
    assert f"held for {side}" not in python.notes()


@pytest.mark.parametrize("side", ["py", "celeriac"])
def test_what_was_sent_is_revoked_before_any_worker_lives(place, side):
    ids = [sent_by(place, side, "py.slow", 0, "never"),
           sent_by(place, side, "py.slow", 0, "never later", countdown=3600)]
    # With Python all that is sent stands on the queue, be it for later.
    later = "queued" if side == "py" else "scheduled"
    assert [revoke(place, task_id)["was"] for task_id in ids] == ["queued", later]
    for task_id in ids:
        with pytest.raises(TaskRevokedError, match="revoked"):
            place.app.AsyncResult(task_id).get(timeout=PATIENCE)
    place.python_worker()
    assert place.get("py.add", 1, 1) == 2
    assert place.notes() == []


def test_what_was_never_sent_is_noted_and_said_so(place):
    told = revoke(place, "foretold")
    assert told["was"] == "noted" and "no worker answers" in told["text"]
    place.rust_worker()
    result = place.send("rust.slow", 0, "foretold ran", task_id="foretold")
    with pytest.raises(TaskRevokedError, match="revoked"):
        result.get(timeout=PATIENCE)
    assert place.notes() == []


COMPOSED = {"chain": 12, "chord": 6, "group": [2, 4], "chain_of_chord": 14, "chord_of_chains": [4, 6]}


@pytest.mark.parametrize("kind", COMPOSED)
@pytest.mark.parametrize("mixed", [False, True], ids=["python alone", "both"])
def test_workflows_made_in_rust(both, kind, mixed):
    composed = both.get("rust.compose", kind, ["py", "rust"] if mixed else ["py", "py"])
    if isinstance(composed, list):
        # With a client that has heard of none of them: in Celery 5.5 one object alone can wait for an id, and the first
        # client has one for each child of the task that sent them.
        fresh = both.client()
        assert [fresh.AsyncResult(member).get(timeout=PATIENCE) for member in composed] == COMPOSED[kind]
        fresh.close()
    else:
        assert both.app.AsyncResult(composed).get(timeout=PATIENCE) == COMPOSED[kind]


CAUGHT = {
    "an error with its argument": ("py.fail", ["boom ø"], ("FAILURE", "builtins", "ValueError", ["boom ø"])),
    "wrong arguments": ("py.add", [1], ("FAILURE", "builtins", "TypeError", None)),
    "a rejected task": ("py.reject", [], ("FAILURE", "celery.exceptions", "Reject", ["nope", False])),
    "retries that end": ("py.retry", [9, 0], ("FAILURE", "builtins", "RuntimeError", ["try3"])),
}


@pytest.mark.parametrize("name", CAUGHT)
def test_an_error_of_pythons_is_an_error_in_rust(both, name):
    task, args, (state, module, kind, said) = CAUGHT[name]
    if CELERY < (5, 7) and task == "py.reject":
        pytest.skip("Celery 5.5 stores nothing")
    caught = both.get("rust.catch", task, args)
    assert (caught["state"], caught["module"], caught["type"]) == (state, module, kind)
    assert said is None or caught["args"] == said
    assert caught["has_traceback"] == (task != "py.reject")


def test_a_group_saved_in_rust_is_restored_in_python(both):
    group_id = both.get("rust.save", ["py.add", "rust.mul"])
    assert GroupResult.restore(group_id, app=both.client()).get(timeout=PATIENCE) == [5, 6]


def test_a_group_saved_in_python_is_restored_in_rust(both):
    sent = group([both.sig("rust.add", 1, 1), both.sig("py.add", 2, 2)], app=both.app).apply_async()
    sent.save()
    assert both.get("rust.restore", sent.id) == [2, 4]


@pytest.mark.parametrize("serializer,content", [("msgpack", "application/x-msgpack"), ("yaml", "application/x-yaml")])
def test_a_step_is_sent_as_its_signature_says(both, serializer, content):
    step = both.sig("py.echo").set(serializer=serializer, compression="zlib")
    assert chain(both.sig("rust.echo", {"a": [1, "ø"]}), step, app=both.app).apply_async().get(timeout=PATIENCE) == {
        "a": [1, "ø"]}
    unseen = both.sig("py.echo").set(serializer=serializer, compression="zlib", queue="unseen")
    chain(both.sig("rust.echo", 1), unseen, app=both.app).apply_async()
    sent = json.loads(until(lambda: both.redis.rpop("unseen"), "the next step should be sent"))
    assert (sent["content-type"], sent["headers"]["compression"]) == (content, "application/x-gzip")


def test_queues_are_counted_and_purged(place):
    for n in range(3):
        place.send("py.add", n, n, priority=3 * n)
    place.celeriac("call", "py.add", "--args", "[1, 2]", "--countdown", "3600")

    def counted():
        rows = [json.loads(line) for line in place.celeriac("--json", "queues").stdout.splitlines()]
        return {row["queue"]: (row["ready"], row["delayed"]) for row in rows}

    assert counted()["python"] == (3, 1)
    purged = place.celeriac("--json", "purge", "-Q", "python", "--force")
    assert json.loads(purged.stdout)["dropped"] == 4
    assert "python" not in counted() or counted()["python"] == (0, 0)
    # Nothing is left for Python's workers either.
    place.python_worker()
    assert place.get("py.add", 1, 1) == 2
    assert place.redis.llen("python") == 0
