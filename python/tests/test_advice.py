"""What is said at the start of tasks that stream, and are acknowledged early."""

import importlib
import sys

import celery
import pytest

from celeriac._worker import application

SOURCE = """
import asyncio
import celery
import celeriac
import celeriac.crewai
import celeriac.langgraph as graphs
from celeriac import cancelled, progress, step as keep

app = celery.Celery("advised", set_as_current=False)
"""
STREAMS = ["celeriac.token('x')", "keep('a', int)", "celeriac.crewai.kickoff(None)", "graphs.run(None, None)",
           "import celeriac as c; c.token('x')", "from celeriac import token; token('x')",
           "[keep('a', int) for _ in range(2)]", "(lambda: celeriac.step('a', int))()"]  # fmt: skip
SILENT = ["return 1", "progress(1)", "celeriac.cancelled()", "asyncio.run(None); cancelled()", "app.token = 1"]


@pytest.fixture
def advised(tmp_path, monkeypatch):
    """Loads an application whose tasks have these bodies, and says of which something is said."""
    monkeypatch.syspath_prepend(tmp_path)

    def load(bodies, options=""):
        head = "\n\n@app.task(name='task-{}', shared=False{})\ndef task_{}():\n    {}\n"
        tasks = "".join(head.format(at, options, at, body) for at, body in enumerate(bodies))
        (tmp_path / "advised.py").write_text(SOURCE + tasks)
        sys.modules.pop("advised", None)
        importlib.invalidate_caches()
        app = importlib.import_module("advised").app
        app.finalize()
        return application.streams_early(app)

    yield load
    sys.modules.pop("advised", None)


@pytest.mark.parametrize("body", STREAMS)
def test_a_task_that_streams_is_named(advised, body):
    assert advised([body]) == ["task-0"]


@pytest.mark.parametrize("body", SILENT)
def test_a_task_that_does_not_is_not(advised, body):
    assert advised([body]) == []


def test_nor_is_one_that_is_acknowledged_late(advised):
    assert advised(STREAMS, ", acks_late=True") == []


def test_whatever_a_task_is_made_of_is_looked_at_in_peace():
    app = celery.Celery("odd", set_as_current=False)

    class Callable:
        __name__ = "odd"

        def __call__(self):
            return 1

    class Task(celery.Task):
        name = "class"
        run = Callable()

    app.register_task(Task())
    app.finalize()
    assert application.streams_early(app) == []
