"""A Django project, with tasks of its applications, by Celery's worker and by ours: the fix-ups that Celery has for it hang on
signals of the worker and its processes."""

import os
import subprocess
import sys

import pytest
from celery import Celery

from conftest import CELERIAC, PATIENCE, open_place
from test_python_app import NODE, reachable_by


@pytest.fixture(scope="module", params=["celery", "celeriac"])
def shop(request, server, tmp_path_factory):
    opened = open_place(server, tmp_path_factory, request, f"djshop-{request.param}")
    place = next(opened)
    kept = place.env
    # Read by Django in the worker; the tests themselves need none of it.
    place.env = lambda **more: kept(INTEROP_DATABASE=str(place.folder / "db.sqlite3"),
                                    DJANGO_SETTINGS_MODULE="djshop.settings", **more)
    subprocess.run([sys.executable, "-m", "django", "migrate", "--run-syncdb", "-v", "0"], env=place.env(), check=True,
                   cwd=place.folder, timeout=PATIENCE)
    more = ["worker", "-n", NODE, "-c", "1", "-l", "info"]
    if request.param == "celery":
        worker = place.start(NODE, [sys.executable, "-m", "celery", "-A", "djshop", *more])
    else:
        worker = place.start(NODE, [CELERIAC, "-A", "djshop", "--python", sys.executable, *more])
    app = Celery(broker=place.url, backend=place.url)
    app.conf.task_default_queue = "djshop"
    reachable_by(app, NODE)
    place.call = lambda name, *args: app.send_task(f"djshop.tasks.{name}", args).get(timeout=PATIENCE)
    yield place
    assert worker.lives(), worker.text()[-6000:]
    app.close()
    next(opened, None)


def test_tasks_of_applications_are_found_with_the_settings_of_the_project(shop):
    order = shop.call("place", "first")
    shop.noted(f"fulfilled {order} 1")
    seen = shop.call("look", order)
    assert seen["state"] == "done" and seen["acks_late"] is True and seen["zone"] == "Europe/Berlin"


def test_what_is_sent_on_commit_goes_with_the_commit(shop):
    with pytest.raises(ValueError, match="second"):
        shop.call("place", "second", True)
    order = shop.call("place", "third")
    shop.noted(f"fulfilled {order} 1")
    # Nothing was sent for the one that was rolled back.
    assert sum(note.startswith("fulfilled") for note in shop.notes()[shop.notes().index("placed second"):]) == 1


def test_connections_are_closed_around_each_task(shop):
    order = shop.call("place", "fourth")
    first, second = shop.call("look", order), shop.call("look", order)
    assert first["pid"] == second["pid"] != os.getpid()
    assert not first["was_open"] and not second["was_open"]
