"""Agent frameworks: what they do becomes the task's stream."""

import asyncio
import contextlib
import contextvars
import json
import os
import sys
import threading
import types

import billiard.process
import celery.signals
import pytest
from test_fallbacks import Recorder

import celeriac
import celeriac.crewai
import celeriac.langgraph
from celeriac import _task


@pytest.fixture
def run():
    run = Recorder()
    mark = _task.enter(run, alone=True)
    yield run
    _task.leave(mark)


class Event:
    def __init__(self, type, **fields):
        self.type = type
        self.__dict__.update(fields)


class Crew:
    """Emits as CrewAI's crew with two tasks does, its agents on a thread that copies the context."""

    tasks = ("first", "second")

    def __init__(self, emit):
        self.emit = emit

    def kickoff(self):
        self.emit(self, Event("crew_kickoff_started", crew_name="crew"))
        for name in self.tasks:
            context = contextvars.copy_context()
            thread = threading.Thread(target=context.run, args=(self.work, name))
            thread.start()
            thread.join()
        return "done"

    def work(self, name):
        self.emit(self, Event("llm_call_started", model="m", messages=["long"] * 100))
        for word in ["a", "b"]:
            self.emit(self, Event("llm_stream_chunk", chunk=word))
        usage = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
        self.emit(self, Event("llm_call_completed", model="m", usage=usage, response="x" * 10_000))
        self.emit(self, Event("task_completed", task_name=name, output="y" * 10_000))


@pytest.fixture
def with_sinks(monkeypatch):
    """CrewAI as of 1.15: sinks of the context, called in line."""
    sinks = contextvars.ContextVar("sinks", default=())
    module = types.ModuleType("crewai.events.stream_context")
    module.add_stream_sink = lambda sink: sinks.set((*sinks.get(), sink))
    module.reset_stream_sinks = sinks.reset
    for name in ["crewai", "crewai.events"]:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)

    def emit(source, event):
        for sink in sinks.get():
            sink(source, event)

    return emit


def check_stream(run, usage):
    assert (usage.calls, usage.prompt, usage.completion, usage.total) == (2, 20, 4, 24)
    names = [name for name, _ in run.records]
    piece = ["llm_call_started", "token", "token", "llm_call_completed", "task_completed", "progress"]
    assert names == ["crew_kickoff_started", *piece, *piece]
    data = [json.loads(data) for name, data in run.records if name == "progress"]
    assert data == [{"done": 1, "total": 2}, {"done": 2, "total": 2}]
    assert [text for name, text in run.records if name == "token"] == ["a", "b", "a", "b"]
    assert max(len(data) for _, data in run.records) < 2_500


def test_a_crew_by_sinks(run, with_sinks):
    with celeriac.crewai.stream() as usage:
        assert Crew(with_sinks).kickoff() == "done"
    check_stream(run, usage)
    Crew(with_sinks).kickoff()
    assert usage.calls == 2, "heard after the block"


def test_a_crew_is_stopped_at_its_next_event(run, with_sinks):
    with pytest.raises(celeriac.TaskStopped), celeriac.crewai.stream():
        with_sinks(None, Event("llm_call_started", model="m"))
        run.stopped = True
        try:
            with_sinks(None, Event("llm_call_started", model="m"))
        except Exception:
            pytest.fail("CrewAI would have caught it, and gone on")


def test_a_crew_by_a_listener(run, monkeypatch):
    """CrewAI before there were sinks: handlers by class, on the bus."""
    handlers = {}

    class Bus:
        @contextlib.contextmanager
        def scoped_handlers(self):
            yield
            handlers.clear()

        def on(self, kind):
            return lambda handler: handlers.setdefault(kind, handler)

    names = {name for names in celeriac.crewai._LISTENED.values() for name in names}
    classes = {name: type(name, (), {}) for name in names}
    modules = ["crewai", "crewai.events", "crewai.events.event_bus", "crewai.events.types"]
    modules += [f"crewai.events.types.{name}" for name in celeriac.crewai._LISTENED]
    for name in modules:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        vars(sys.modules[name]).update(classes)
    sys.modules["crewai.events.event_bus"].crewai_event_bus = Bus()
    # None says to Python that there is no such module.
    monkeypatch.setitem(sys.modules, "crewai.events.stream_context", None)
    by_type = {"crew_kickoff_started": "CrewKickoffStartedEvent", "llm_stream_chunk": "LLMStreamChunkEvent",
               "llm_call_started": "LLMCallStartedEvent", "llm_call_completed": "LLMCallCompletedEvent",
               "task_completed": "TaskCompletedEvent"}  # fmt: skip
    with celeriac.crewai.stream() as usage:
        Crew(lambda source, event: handlers[classes[by_type[event.type]]](source, event)).kickoff()
    check_stream(run, usage)
    assert not handlers


def test_a_crew_outside_of_a_task(with_sinks):
    with celeriac.crewai.stream() as usage:
        Crew(with_sinks).kickoff()
    assert usage.total == 24


def test_processes_store_apart(tmp_path, monkeypatch):
    signal = celery.signals.worker_process_init
    monkeypatch.delenv("CREWAI_STORAGE_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="CREWAI_STORAGE_DIR"):
        celeriac.crewai.separate_storage()
    try:
        # Of what is said twice the last holds.
        celeriac.crewai.separate_storage("elsewhere")
        monkeypatch.setenv("CREWAI_STORAGE_DIR", "stored")
        celeriac.crewai.separate_storage()
        for place in (3, 0):
            monkeypatch.setattr(billiard.process.current_process(), "index", place, raising=False)
            monkeypatch.setenv("CREWAI_STORAGE_DIR", "stored")
            signal.send(sender="worker")
            assert os.environ["CREWAI_STORAGE_DIR"] == str(tmp_path / "stored" / f"process-{place}")
    finally:
        signal.disconnect(dispatch_uid=celeriac.crewai._SEPARATE)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["process-0", "process-3", "stored"]


@pytest.mark.parametrize("how", ["run", "arun"])
def test_a_graph(run, how):
    pytest.importorskip("langgraph")
    from langchain_core.language_models import GenericFakeChatModel
    from langchain_core.messages import AIMessage
    from langgraph.config import get_stream_writer
    from langgraph.graph import END, START, MessagesState, StateGraph

    model = GenericFakeChatModel(messages=iter([AIMessage("one two")]))

    def ask(state):
        get_stream_writer()({"note": 1})
        return {"messages": [model.invoke(state["messages"])]}

    async def ask_async(state):
        get_stream_writer()({"note": 1})
        return {"messages": [await model.ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState).add_node("ask", ask if how == "run" else ask_async)
    graph = graph.add_edge(START, "ask").add_edge("ask", END).compile()
    inputs = {"messages": [("user", "hello")]}
    if how == "run":
        state = celeriac.langgraph.run(graph, inputs)
    else:
        state = asyncio.run(celeriac.langgraph.arun(graph, inputs))
    assert state["messages"][-1].content == "one two"
    assert "".join(text for name, text in run.records if name == "token") == "one two"
    rest = [(name, json.loads(data)) for name, data in run.records if name != "token"]
    assert ("custom", {"note": 1}) in rest and ("node", {"name": "ask", "keys": ["messages"]}) in rest
    run.stopped = True
    with pytest.raises(celeriac.TaskStopped):
        celeriac.langgraph.run(graph, inputs)
