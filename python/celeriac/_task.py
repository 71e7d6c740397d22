"""What a task may do while it runs: report, stream, take durable steps, notice that it is to stop.

Under ``celeriac worker`` a *run* stands behind these functions, see :class:`Run`. Elsewhere each has a fallback that does no
harm, so that a task that uses them also runs under ``celery worker``, in a unit test, and as a plain function.
"""

from __future__ import annotations

import contextvars
import inspect
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any, ParamSpec, Protocol, TypeVar, overload

logger = logging.getLogger("celeriac")

P = ParamSpec("P")
T = TypeVar("T")


class TaskStopped(BaseException):
    """The task is told to stop, and goes on.

    Raised by :func:`progress`, :func:`token` and :func:`step` once the task's soft time limit has passed, or it was revoked.
    It is a ``BaseException``, as ``KeyboardInterrupt`` is: agent frameworks catch every ``Exception``, Celery's
    ``SoftTimeLimitExceeded`` included, and would go on as if nothing had been said. Let it pass. A task that ends by it has
    failed with ``SoftTimeLimitExceeded``, or ends as whoever stopped it wants.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        #: Why: ``soft_time_limit``, ``revoked``, ``shutdown``, ``time_limit``, ``lease_lost``.
        self.reason = reason


class StepError(Exception):
    """A step's value cannot be kept, or cannot be had."""


class Run(Protocol):
    """A task that runs, as whoever runs it offers it to the functions of this module."""

    def record(self, event: str, data: str) -> None:
        """Appends a record; ``data`` is JSON."""

    def token(self, text: str) -> None:
        """Appends to the text that is streamed."""

    def find_step(self, name: str) -> tuple[str, str | None]:
        """The key of a step, and its value as JSON when it has one."""

    def store_step(self, key: str, value: str) -> None:
        """Keeps a step's value; returns when it is kept."""

    async def find_step_async(self, name: str) -> tuple[str, str | None]:
        """As :meth:`find_step`, and the loop goes on meanwhile."""

    async def store_step_async(self, key: str, value: str) -> None:
        """As :meth:`store_step`, and the loop goes on meanwhile."""

    def cancelled(self) -> bool:
        """Whether the task is told to stop."""

    def check(self) -> None:
        """Raises :class:`TaskStopped` when the task goes on though it was told to stop."""


_current: contextvars.ContextVar[Run | None] = contextvars.ContextVar("celeriac_run", default=None)
#: The one task of a process that runs one at a time. Threads that a task starts do not inherit its context.
_only: Run | None = None


def enter(run: Run, *, alone: bool) -> contextvars.Token[Run | None]:
    """Makes a run the current one; ``alone`` says that no other runs in this process."""
    global _only
    if alone:
        _only = run
    return _current.set(run)


def leave(mark: contextvars.Token[Run | None]) -> None:
    """Takes back what :func:`enter` has done."""
    global _only
    _only = None
    _current.reset(mark)


def enter_here(run: Run | None) -> contextvars.Token[Run | None]:
    """Makes a run the current one of this thread, or of this coroutine, for a while."""
    return _current.set(run)


def leave_here(mark: contextvars.Token[Run | None]) -> None:
    """Takes back what :func:`enter_here` has done."""
    _current.reset(mark)


def current() -> Run | None:
    """The run that this code belongs to, if one is known."""
    return _current.get() or _only


def progress(done: float, total: float | None = None, **data: Any) -> None:
    """Reports how far the task is: record ``progress`` of its log, ``{"done": …, "total": …}`` and more if you like.

    Under ``celery worker``: ``update_state(state="PROGRESS", meta=…)`` with the same data. Outside of a worker: nothing.
    """
    data = {**data, "done": done, "total": total}
    run = current()
    if run is not None:
        run.check()
        text = _shown("progress", data)
        if text is not None:
            run.record("progress", text)
        return
    task = _celery_task()
    if task is not None:
        task.update_state(state="PROGRESS", meta=data)


def emit(event: str, data: Any = None) -> None:
    """Appends a record to the task's log, for whoever follows it; durable, and seen by every follower, late ones too.

    ``data`` is written as JSON; dates, UUIDs, decimals, sets, dataclasses and Pydantic models are written as they usually are.
    What cannot be written so is left out with a warning: a report never fails a task, and it never raises
    :class:`TaskStopped`, so that a task may say how it ends. The name ``end`` is the log's own.

    Elsewhere: a debug line in the log of ``celeriac``.
    """
    run = current()
    if run is None:
        logger.debug("%s: %r", event, data)
        return
    text = _shown(event, data)
    if text is not None:
        run.record(event, text)


def token(text: str) -> None:
    """Appends to the text that the task streams. Cheap: tokens that come close together travel together.

    Elsewhere: a debug line in the log of ``celeriac``.
    """
    run = current()
    if run is None:
        logger.debug("token: %r", text)
    elif text:
        run.check()
        run.token(text)


@overload
def step(name: str, fn: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> Awaitable[T]: ...
@overload
def step(name: str, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T: ...
def step(name: str, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Runs ``fn`` once: when it has returned a value, neither a retry nor a redelivery of this task runs it again, but
    gets the value.

    The value is kept as JSON before it is returned, and what is returned is what was kept: tuples come back as lists, in the
    first run as in every other. What JSON cannot hold is an error (:class:`StepError`): return plain data, such as
    ``model.model_dump(mode="json")``. A name used again in one run counts as ``name#2``, ``name#3`` …, so give each step
    its own name where their order varies. A step cut in half is run again: pass an idempotency key to what must not be paid
    twice. With an ``async def`` function, await what this returns. In a task that is ``async def`` itself a step waits for
    the store, so there another function's is taken in a thread: ``await asyncio.to_thread(celeriac.step, …)``.

    Elsewhere: calls the function.
    """
    run = current()
    if inspect.iscoroutinefunction(fn):
        return fn(*args, **kwargs) if run is None else _async_step(run, name, fn, args, kwargs)
    if run is None:
        return fn(*args, **kwargs)
    run.check()
    key, kept = run.find_step(name)
    if kept is None:
        kept = _kept(key, fn(*args, **kwargs))
        run.store_step(key, kept)
    return json.loads(kept)


async def _async_step(run: Run, name: str, fn: Callable[..., Awaitable[Any]], args: Any, kwargs: Any) -> Any:
    run.check()
    key, kept = await run.find_step_async(name)
    if kept is None:
        kept = _kept(key, await fn(*args, **kwargs))
        await run.store_step_async(key, kept)
    return json.loads(kept)


def cancelled() -> bool:
    """Whether the task is told to stop: its soft time limit has passed, it was revoked with ``terminate``, the worker shuts
    down.

    Raises nothing; ask between pieces of work. Elsewhere: ``False``.
    """
    run = current()
    return run is not None and run.cancelled()


def _kept(key: str, value: Any) -> str:
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as why:
        raise StepError(f"the value of step {key!r} cannot be kept as JSON: {why}; return plain data from it, such as "
                        "model.model_dump(mode='json'), dataclasses.asdict(…) or str(…)") from why  # fmt: skip


def _shown(event: str, data: Any) -> str | None:
    try:
        return json.dumps(data, default=_plain, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as why:
        logger.warning("record %r is left out, since it cannot be written as JSON: %s", event, why)
        return None


def _plain(value: Any) -> Any:
    """What JSON does not know, as it is usually written."""
    dump = getattr(value, "model_dump", None)
    if callable(dump) and not isinstance(value, type):
        return dump(mode="json")
    import dataclasses
    import datetime
    import decimal
    import enum
    import uuid

    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, (uuid.UUID, decimal.Decimal)):
        return str(value)
    if isinstance(value, (set, frozenset)):
        return list(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    raise TypeError(f"a {type(value).__name__} is not JSON")


def _celery_task() -> Any:
    """The task that a worker of Celery's runs here, if one does; Celery is not imported for the question."""
    import sys

    state = sys.modules.get("celery._state")
    task = state.get_current_task() if state is not None else None
    if task is None:
        return None
    request = task.request
    return None if request.called_directly or request.is_eager or request.id is None else task
