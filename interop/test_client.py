"""celeriac as the client: its command line and its canvas send, Python's workers run."""

import datetime
import json

import pytest

from conftest import PATIENCE, until

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
