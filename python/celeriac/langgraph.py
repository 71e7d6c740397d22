"""What a LangGraph graph does, as the stream of the task that runs it.

>>> import celeriac.langgraph                                               # doctest: +SKIP
>>> state = celeriac.langgraph.run(graph, {"messages": [("user", text)]})    # doctest: +SKIP
>>> state = await celeriac.langgraph.arun(graph, inputs, config)             # doctest: +SKIP

Words of the models become ``token`` records, a node that is done a record ``node`` with its name and the keys it has changed,
and what nodes write to the stream writer records ``custom``. The last state is returned. Once the task's soft time limit has
passed, the next of these raises :class:`celeriac.TaskStopped`.

LangGraph itself is not imported: whatever has its ``stream`` and ``astream`` will do.
"""

from __future__ import annotations

from typing import Any

from . import _task

_MODES = ["values", "updates", "messages", "custom"]


def run(graph: Any, inputs: Any, config: Any = None, **options: Any) -> Any:
    """Runs a graph, and returns its last state."""
    state = None
    for mode, data in graph.stream(inputs, config, stream_mode=_MODES, **options):
        state = _report(mode, data, state)
    return state


async def arun(graph: Any, inputs: Any, config: Any = None, **options: Any) -> Any:
    """The same of a graph whose nodes are coroutines."""
    state = None
    async for mode, data in graph.astream(inputs, config, stream_mode=_MODES, **options):
        state = _report(mode, data, state)
    return state


def _report(mode: str, data: Any, state: Any) -> Any:
    current = _task.current()
    if current is not None:
        current.check()
    if mode == "values":
        return data
    if mode == "messages":
        chunk, _ = data
        # What is no piece of an answer as it comes: whole messages that a node has put into the state.
        if "Chunk" in type(chunk).__name__:
            _task.token(_text(chunk.content))
    elif mode == "updates":
        for node, change in data.items():
            _task.emit("node", {"name": node, "keys": sorted(map(str, change)) if isinstance(change, dict) else []})
    else:
        _task.emit("custom", data)
    return state


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(part if isinstance(part, str) else str(part.get("text") or "") for part in content or ())
