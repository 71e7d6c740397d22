"""What a CrewAI crew does, as the stream of the task that runs it.

>>> import celeriac.crewai                                  # doctest: +SKIP
>>> @app.task                                               # doctest: +SKIP
... def research(topic):
...     return celeriac.crewai.kickoff(crew(), {"topic": topic}).raw

or, with :func:`stream` and :func:`durable` apart,

...     with celeriac.crewai.stream() as usage:
...         return {"text": str(crew().kickoff({"topic": topic})), "tokens": usage.total}

Words of the models become ``token`` records, finished tasks ``progress``, and every other event a record of its own type
(``crew_kickoff_started``, ``agent_execution_started``, ``tool_usage_finished``, ``llm_call_completed`` …). Once the task's
soft time limit has passed, the next event raises :class:`celeriac.TaskStopped`, which CrewAI does not catch: the model is
not asked again.

Outside of a task, and under ``celery worker``, the fallbacks of :mod:`celeriac` hold. CrewAI is imported when it is used.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from . import _task

if TYPE_CHECKING:
    from crewai import Crew, Task
    from crewai.crews.crew_output import CrewOutput
    from crewai.tasks.task_output import TaskOutput

#: What is told of an event, where it has it.
_TOLD = ("crew_name", "task_name", "agent_role", "tool_name", "tool_args", "model", "finish_reason", "usage", "output", "error")
#: What Celery knows the receiver of :func:`separate_storage` by.
_SEPARATE = "celeriac.crewai.separate_storage"
#: Longer texts are for the result, not for the stream.
_TEXT_MAX = 2_000
#: Classes for the listener of versions without sinks, by the module of `crewai.events.types` they are in.
_LISTENED = {
    "agent_events": ["AgentExecutionStartedEvent", "AgentExecutionCompletedEvent", "AgentExecutionErrorEvent"],
    "crew_events": ["CrewKickoffStartedEvent", "CrewKickoffCompletedEvent", "CrewKickoffFailedEvent"],
    "llm_events": ["LLMCallStartedEvent", "LLMCallCompletedEvent", "LLMCallFailedEvent", "LLMStreamChunkEvent"],
    "task_events": ["TaskStartedEvent", "TaskCompletedEvent", "TaskFailedEvent"],
    "tool_usage_events": ["ToolUsageStartedEvent", "ToolUsageFinishedEvent", "ToolUsageErrorEvent"],
}


@dataclass
class Usage:
    """Tokens of the calls so far, each call counted once: a crew's own sum counts an LLM that agents share for each of them."""

    calls: int = 0
    prompt: int = 0
    completion: int = 0
    total: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def add(self, usage: Any) -> None:
        """Adds the usage of one call, as its provider has told it."""
        found = usage if isinstance(usage, dict) else {}

        def count(*names: str) -> int:
            return next((value for name in names if isinstance(value := found.get(name), int)), 0)

        prompt = count("prompt_tokens", "input_tokens")
        completion = count("completion_tokens", "output_tokens")
        with self._lock:
            self.calls += 1
            self.prompt += prompt
            self.completion += completion
            self.total += count("total_tokens") or prompt + completion


@contextlib.contextmanager
def stream() -> Iterator[Usage]:
    """Streams what CrewAI does within the block."""
    sink = _Sink()
    mark = _open.set(sink)
    try:
        with _attached(sink):
            yield sink.usage
    finally:
        _open.reset(mark)


@contextlib.contextmanager
def _attached(sink: _Sink) -> Iterator[None]:
    try:
        from crewai.events.stream_context import add_stream_sink, reset_stream_sinks
    except ImportError:
        with _listening(sink):
            yield
        return
    mark = add_stream_sink(sink)
    try:
        yield
    finally:
        reset_stream_sinks(mark)


class _Sink:
    """Turns events into reports."""

    def __init__(self) -> None:
        self.usage = Usage()
        # Events come from CrewAI's threads, which may know nothing of the task.
        self._run = _task.current()
        self._done = 0
        self._tasks: int | None = None

    def __call__(self, source: Any, event: Any) -> None:
        mark = _task.enter_here(self._run)
        try:
            self._report(source, event)
        finally:
            _task.leave_here(mark)

    def _report(self, source: Any, event: Any) -> None:
        if self._run is not None:
            self._run.check()
        kind = event.type
        if kind == "llm_stream_chunk":
            _task.token(event.chunk or "")
            return
        if kind == "llm_thinking_chunk":
            return
        if kind == "llm_call_completed":
            self.usage.add(getattr(event, "usage", None))
        elif kind == "crew_kickoff_started":
            tasks = getattr(source, "tasks", None)
            self._tasks = len(tasks) if tasks else None
        told = {name: _short(value) for name in _TOLD if (value := getattr(event, name, None)) is not None}
        for name, of in (("agent_role", "agent"), ("task_name", "task")):
            about = getattr(event, of, None)
            found = getattr(about, "role" if of == "agent" else "name", None)
            if found and name not in told:
                told[name] = _short(found)
        _task.emit(kind, told)
        if kind == "task_completed":
            self._one_more()

    def _one_more(self) -> None:
        self._done += 1
        _task.progress(self._done, self._tasks)

    def kept(self, task: Any, output: Any) -> None:
        """A task of the crew was finished in an earlier run."""
        mark = _task.enter_here(self._run)
        try:
            _task.emit("task_kept", {"task_name": _short(task.name or task.description), "agent_role": output.agent})
            self._one_more()
        finally:
            _task.leave_here(mark)


#: The stream that is open in this context.
_open: contextvars.ContextVar[_Sink | None] = contextvars.ContextVar("celeriac_crewai", default=None)


def _short(value: Any) -> Any:
    if isinstance(value, (int, float, bool, dict)):
        return value
    text = str(getattr(value, "raw", value))
    return text if len(text) <= _TEXT_MAX else text[:_TEXT_MAX] + "…"


@contextlib.contextmanager
def _listening(sink: _Sink) -> Iterator[None]:
    """As a listener on the bus, which may hear events in another order, and cannot stop what it hears of."""
    import importlib

    from crewai.events.event_bus import crewai_event_bus

    with crewai_event_bus.scoped_handlers():
        for module, names in _LISTENED.items():
            found = importlib.import_module(f"crewai.events.types.{module}")
            for name in names:
                if hasattr(found, name):
                    crewai_event_bus.on(getattr(found, name))(lambda source, event: sink(source, event))
        yield


def kickoff(crew: Crew, inputs: dict[str, Any] | None = None, **kwargs: Any) -> CrewOutput:
    """``crew.kickoff``, streamed and durable: :func:`stream` and :func:`durable` in one line."""
    with stream():
        return durable(crew).kickoff(inputs=inputs, **kwargs)


async def akickoff(crew: Crew, inputs: dict[str, Any] | None = None, **kwargs: Any) -> CrewOutput:
    """``crew.akickoff``, in the same way: for ``async def`` tasks, many in a process."""
    with stream():
        return await durable(crew).akickoff(inputs=inputs, **kwargs)


def durable(crew: Crew) -> Crew:
    """Makes each task of a crew a step of the task that runs, and returns the crew.

    What a task of the crew came to is kept before the next one begins. A run that finds it kept asks no model, calls no
    callback and uses no tool for it. Give the crew's tasks names that stay: a step is found by the name, or else by the
    task's place in the crew. Copies of the crew, as ``kickoff_for_each`` makes them, are not durable.
    """
    for at, task in enumerate(crew.tasks, 1):
        _keep(task, f"crew task {at}: {task.name}" if task.name else f"crew task {at}")
    if _task.current() is not None and hasattr(crew, "_task_output_handler"):
        crew._task_output_handler = _Outputs()
    return crew


def separate_storage(folder: str | os.PathLike[str] | None = None) -> None:
    """Gives each process of a worker's pool a folder of its own for what CrewAI stores: ``process-0`` and so on, in ``folder``
    or else in what ``CREWAI_STORAGE_DIR`` names. Call it where tasks are defined.

    CrewAI's files, SQLite and LanceDB, are otherwise shared by all processes. A process that is replaced leaves its folder to
    the next one in its place. What crews remember, and flows with ``@persist``, is then known in one process only: leave this
    out where they are to find it in any. Knowledge whose store is made while modules are imported stays where it was.
    """
    from celery.signals import worker_process_init

    parent = folder or os.environ.get("CREWAI_STORAGE_DIR")
    if not parent:
        raise ValueError("separate_storage() needs a folder: name one, or set CREWAI_STORAGE_DIR")
    # CrewAI takes what is no whole path for a name of its own, or from wherever a task happens to be.
    parent = os.path.abspath(parent)

    def separate(**_: Any) -> None:
        from billiard.process import current_process

        place = getattr(current_process(), "index", None) or 0
        own = os.path.join(parent, f"process-{place}")
        os.makedirs(own, exist_ok=True)
        os.environ["CREWAI_STORAGE_DIR"] = own

    # Said twice, the last one holds; Celery would keep the first.
    worker_process_init.disconnect(dispatch_uid=_SEPARATE)
    worker_process_init.connect(separate, weak=False, dispatch_uid=_SEPARATE)


class _Outputs:
    """What a crew keeps of its tasks for :meth:`Crew.replay`, with the crew itself.

    CrewAI keeps it in one SQLite file for all processes that run in a folder of one name, where crews that run at the same
    time clear away each other's. The rest of what CrewAI stores, memories above all, stays where it is.
    """

    def __init__(self) -> None:
        self._kept: dict[int, dict[str, Any]] = {}

    def reset(self) -> None:
        self._kept.clear()

    def update(self, task_index: int, log: dict[str, Any]) -> None:
        task = log["task"]
        self._kept[task_index] = {
            "task_id": str(task.id),
            "task_key": getattr(task, "key", None),
            "expected_output": task.expected_output,
            "output": log["output"],
            "task_index": task_index,
            "inputs": log.get("inputs") or {},
            "was_replayed": log.get("was_replayed", False),
        }

    def add(self, task: Any, output: dict[str, Any], task_index: int, inputs: Any = None, was_replayed: bool = False) -> None:
        self.update(task_index, {"task": task, "output": output, "inputs": inputs, "was_replayed": was_replayed})

    def load(self) -> list[dict[str, Any]]:
        return [self._kept[at] for at in sorted(self._kept)]


def _keep(task: Task, name: str) -> None:
    if getattr(task.execute_sync, "durable", False):
        return
    execute, aexecute = task.execute_sync, task.aexecute_sync

    def execute_sync(agent: Any = None, context: str | None = None, tools: Any = None) -> TaskOutput:
        fresh: list[TaskOutput] = []

        def run() -> dict[str, Any]:
            fresh.append(execute(agent, context, tools))
            return _kept(fresh[0])

        kept = _task.step(name, run)
        return fresh[0] if fresh else _found(task, kept)

    async def aexecute_sync(agent: Any = None, context: str | None = None, tools: Any = None) -> TaskOutput:
        fresh: list[TaskOutput] = []

        async def run() -> dict[str, Any]:
            fresh.append(await aexecute(agent, context, tools))
            return _kept(fresh[0])

        kept = await _task.step(name, run)
        return fresh[0] if fresh else _found(task, kept)

    def execute_async(agent: Any = None, context: str | None = None, tools: Any = None) -> Future[TaskOutput]:
        future: Future[TaskOutput] = Future()

        def run() -> None:
            try:
                future.set_result(execute_sync(agent, context, tools))
            except BaseException as why:  # whoever waits for it gets it
                future.set_exception(why)

        threading.Thread(target=contextvars.copy_context().run, args=(run,), daemon=True).start()
        return future

    execute_sync.durable = True  # type: ignore[attr-defined]
    for method in (execute_sync, aexecute_sync, execute_async):
        # Tasks are Pydantic models, which let nobody set what is no field of theirs in the usual way.
        object.__setattr__(task, method.__name__, functools.wraps(getattr(type(task), method.__name__))(method))


def _kept(output: TaskOutput) -> dict[str, Any]:
    kept: dict[str, Any] = output.model_dump(mode="json", exclude={"messages"})
    return kept


def _found(task: Task, kept: dict[str, Any]) -> TaskOutput:
    from crewai.tasks.task_output import TaskOutput

    model = task.output_pydantic
    value = kept.pop("pydantic", None)
    output = TaskOutput.model_validate(kept)
    if model is not None and value is not None:
        output.pydantic = model.model_validate(value)
    task.output = output
    sink = _open.get()
    if sink is not None:
        sink.kept(task, output)
    return output
