"""What others put on our queues: nothing of it ends a worker, and nothing is lost."""

import base64
import json
import pickle

import pytest

from conftest import PATIENCE, until

pytestmark = pytest.mark.celeriac


def dead(place):
    return [json.loads(line) for line in place.celeriac("--json", "dead", "list").stdout.splitlines()]


def dead_letter(place, task_id):
    def found():
        return next((letter for letter in dead(place) if letter["id"] == task_id), None)

    return until(found, f"{task_id} should be put with the dead letters: {dead(place)}")


class Exploit:
    """Runs a command where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickle_is_refused_with_the_remedy_and_put_aside(rust):
    trap = rust.folder / "unpickled"
    sender = rust.client(task_serializer="pickle", accept_content=["json", "pickle"])
    result = sender.send_task("rust.echo", (Exploit(trap),))
    letter = dead_letter(rust, result.id)
    assert "pickle" in letter["reason"] and "task_serializer" in letter["reason"] and letter["task"] == "rust.echo"
    assert not trap.exists()
    # Its caller hears of it.
    told = rust.app.AsyncResult(result.id)
    with pytest.raises(Exception, match="pickle"):
        told.get(timeout=PATIENCE)
    sender.close()


def envelope(task_id, **changes):
    message = {
        "body": base64.b64encode(b"[[1, 2], {}, {}]").decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"lang": "py", "task": "rust.add", "id": task_id},
        "properties": {"delivery_info": {"exchange": "", "routing_key": "rust"}, "priority": 0,
                       "body_encoding": "base64", "delivery_tag": task_id},
    }
    for path, value in changes.items():
        place = message
        *parents, last = path.split("__")
        for parent in parents:
            place = place[parent]
        if value is ABSENT:
            del place[last]
        else:
            place[last] = value
    return json.dumps(message)


ABSENT = object()

# Each kills a worker of Python's, puts it into a loop, or is lost by it.
POISON = {
    "no delivery info": {"properties__delivery_info": ABSENT},
    "no delivery tag": {"properties__delivery_tag": ABSENT},
    "no content type": {"content-type": ABSENT},
    "no triple": {"body": base64.b64encode(b"[[1, 2], {}]").decode()},
    "no base64": {"body": "@@@"},
    "half a time limit": {"headers__timelimit": [1]},
    "an eta that is none": {"headers__eta": "soon"},
    "an unknown type": {"body": base64.b64encode(b'[[{"__type__": "zz", "__value__": 1}, 2], {}, {}]').decode()},
    "an unknown compression": {"headers__compression": "application/x-foo"},
    "named arguments that are none": {"body": base64.b64encode(b"[[1, 2], null, {}]").decode()},
}


@pytest.mark.parametrize("name", POISON)
def test_poison_is_put_aside(rust, name):
    task_id = name.replace(" ", "-")
    rust.redis.lpush("rust", envelope(task_id, **POISON[name]))
    assert dead_letter(rust, task_id)["reason"]
    assert rust.get("rust.add", 1, 1) == 2


@pytest.mark.parametrize("text", [b"not json", b"[1, 2]", b'{"body": "\xff"}', b"", b"{}", b"null"], ids=repr)
def test_what_is_no_message_at_all_is_put_aside(rust, text):
    before = len(dead(rust))
    rust.redis.lpush("rust", text)
    assert rust.get("rust.add", 1, 1) == 2
    until(lambda: len(dead(rust)) == before + 1, "it should be put with the dead letters")


TOLERATED = {
    "headers of name and id alone": {},
    "no correlation id": {"headers__lang": "rust"},
    "text": {"body": "[[1, 2], {}, {}]", "properties__body_encoding": "utf-8"},
    "no embed": {"body": base64.b64encode(b"[[1, 2], {}, null]").decode()},
    "no content encoding": {"content-encoding": ABSENT},
    "retries as text": {"headers__retries": "0"},
    "priority as text": {"properties__priority": "3"},
    "a number for a tag": {"properties__delivery_tag": 7},
    "a time of another form": {"headers__eta": "2020-01-01 00:00:00.123456789Z"},
}


@pytest.mark.parametrize("name", TOLERATED)
def test_what_python_runs_is_run(rust, name):
    task_id = name.replace(" ", "_")
    rust.redis.lpush("rust", envelope(task_id, **TOLERATED[name]))
    assert rust.app.AsyncResult(task_id).get(timeout=PATIENCE) == 3


def test_a_task_that_nobody_knows_waits_for_who_does(place):
    # Celery drops it; here a worker that is updated later still finds it.
    worker = place.rust_worker()
    result = place.send("rust.later", 1)
    place.get("rust.add", 1, 1)
    assert result.state == "PENDING"
    until(lambda: "rust.later" in worker.text(), "the worker should say that it does not know the task")
