"""A process that runs many tasks at once: on threads, and with the pool ``asyncio`` those that are ``async def`` on one loop.

Celery's tracer runs on a thread for each task, as it is; what an ``async def`` task returns to it is awaited on the loop, in
a context in which Celery finds the request of that thread. So all that Celery does around a task is done around these.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import inspect
import json
import logging
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Coroutine, Generator
from typing import Any

from .. import _task
from . import report, wire
from .application import Worker
from .child import Child
from .interrupt import hang_up, raise_in
from .writer import Call, Line, Writer

logger = logging.getLogger("celeriac.worker")
#: A loop that does not come round for so long is told of.
_BLOCKED_SECONDS = 1.0
#: A task that was told to stop and keeps the loop is interrupted after this.
_GLANCE_SECONDS = 0.25
#: A task that goes on when nobody waits for it is stopped again after each of these; the grace that it has by then is five
#: seconds, if nobody has set another.
_STOP_PAUSES = (0.2, 0.4, 0.8, 1.6)
#: Exceptions that may be raised in a thread for one task: for its limit, its revocation, and these.
_RAISES_MAX = len(_STOP_PAUSES) + 4
#: Told so, a task is stopped by an exception; to give way, it may finish what it does.
_STOPPING = frozenset((report.SOFT_TIME_LIMIT, "revoked", "time_limit", "lease_lost"))
#: Told so, nobody waits for it any more.
_LEFT = "time_limit"
#: The thread whose task a coroutine is.
_ident: contextvars.ContextVar[int | None] = contextvars.ContextVar("celeriac_ident", default=None)


class Stopped(BaseException):
    """Ends a task that is told to stop. No ``except Exception`` holds it up."""


class Running:
    """A task that runs here."""

    def __init__(self, line: Line) -> None:
        self.line = line
        #: Why it is to stop; what comes later may be more urgent.
        self.told: list[str] = []
        self.why: type[BaseException] | None = None
        self.reports: Call | None = None
        self.thread = 0
        self.begun = False
        self.end = b""
        # Where it is a coroutine.
        self.name = ""
        self.task: asyncio.Task[Any] | None = None
        #: That the loop's thread is interrupted for it is not done yet.
        self.interrupts = False

    def tell(self) -> None:
        """What it reports hears of what it was told."""
        if self.reports is not None:
            for reason in list(self.told):
                self.reports.stop(reason)


class Crowd(Child):
    """The process."""

    def __init__(self, worker: Worker, sock: socket.socket, pool: str) -> None:
        super().__init__(worker, sock)
        self.pool = pool
        self.writer = Writer(self.channel)
        self.calls: dict[int, Running] = {}
        # Held for moments, and never while anything of the application's runs.
        self.lock = threading.Lock()
        # The supervisor bounds what is in it: it sends no more than it has seats.
        self.work: queue.SimpleQueue[tuple[int, int, bytes]] = queue.SimpleQueue()
        self.threads = 0
        self.idle = 0
        self.loop: asyncio.AbstractEventLoop | None = None
        self.current = threading.local()
        self.leaving: queue.SimpleQueue[Running] = queue.SimpleQueue()

    @property
    def reports(self) -> Any:
        """What is reported of the task that this thread or coroutine belongs to."""
        return _task.current()

    @reports.setter
    def reports(self, _: Any) -> None:
        """There is no one of the whole process."""

    def serve(self) -> int:
        """Runs tasks until told to stop; returns the exit code."""
        from celery import _state

        # Before any task runs: its request is found where its coroutine runs, too.
        _share(_state._task_stack)
        for task in self.app.tasks.values():
            _share(task.request_stack)
        threading.Thread(target=self._stop_those_left, name="celeriac-stop", daemon=True).start()
        # Who says hello before it has anything to write.
        self.writer.start()
        if self.pool != "asyncio":
            return super().serve()
        self._await_coroutines()
        self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)
        self.writer.loop_thread = threading.get_ident()
        threading.Thread(target=self._watch_loop, name="celeriac-watch", daemon=True).start()
        code = [1]
        threading.Thread(target=self._talk, args=(code,), name="celeriac-talk", daemon=True).start()
        self.loop.run_forever()
        return code[0]

    def _talk(self, code: list[int]) -> None:
        try:
            code[0] = super().serve()
        except (BrokenPipeError, ConnectionResetError):
            self.orphaned = True
        finally:
            self._loop().call_soon_threadsafe(self._loop().stop)

    def _loop(self) -> asyncio.AbstractEventLoop:
        assert self.loop is not None
        return self.loop

    def take(self, kind: int, call: int, payload: bytes) -> None:
        """Has a frame dealt with; a task, on a thread, of which there come as many as are needed at once."""
        if kind == wire.ANSWER:
            self._answer(call, payload)
        elif kind == wire.CANCEL:
            self._cancel(call, json.loads(payload))
        elif kind == wire.PING:
            self._pong()
        elif kind in (wire.TASK, wire.CONCLUDE):
            self._work(kind, call, payload)

    def _answer(self, call: int, payload: bytes) -> None:
        running = self.calls.get(call)
        if running is not None:
            question, status = report.ANSWER.unpack_from(payload)
            running.line.answer(question, status, payload[report.ANSWER.size:])

    def _pong(self) -> None:
        if self.loop is None:
            self.writer.say(wire.PONG, 0, b"")
        else:
            # When it comes round.
            self.loop.call_soon_threadsafe(self.writer.say, wire.PONG, 0, b"")

    def _work(self, kind: int, call: int, payload: bytes) -> None:
        with self.lock:
            if kind == wire.TASK:
                self.calls[call] = Running(Line(self.writer, call))
            another = self.idle == 0
            if another:
                self.threads += 1
            else:
                self.idle -= 1
            name = f"Worker-{self.threads}"
        self.work.put((kind, call, payload))
        if another:
            threading.Thread(target=self._thread, name=name, daemon=True).start()

    def _thread(self) -> None:
        self.app.set_current()
        while True:
            kind, call, payload = self.work.get()
            if kind == wire.CONCLUDE:
                self.writer.say(wire.CONCLUDED, call, self._conclude(payload))
            else:
                running = self.calls[call]
                for _ in range(_RAISES_MAX):
                    # One that comes too late for its task is of no interest.
                    with contextlib.suppress(BaseException):
                        self._deal(call, payload, running)
                        break
            with self.lock:
                self.idle += 1

    def _deal(self, number: int, payload: bytes, running: Running) -> None:
        """Runs a task and sends its end. Where an exception for the task comes between, it goes on when called again."""
        if not running.begun:
            running.begun = True
            running.end = self._broken(Stopped("in a moment in which it could not hear of it"))
            running.end = self._run_guarded(number, payload, running)
        with self.lock:
            running.thread = 0
            running.task = None
            # One that comes too late for its task must not meet the next.
            raise_in(threading.get_ident(), None)
        self.current.running = None
        if self.calls.pop(number, None) is not None:
            running.line.put(wire.END, running.end)

    def _run_guarded(self, number: int, payload: bytes, running: Running) -> bytes:
        self.current.running = running
        try:
            with self.lock:
                running.thread = threading.get_ident()
                why = running.why
            if why is not None:
                raise why
            return self._run(payload, number)
        except BaseException as why:
            # Told to stop, or what would end a process that the task had for itself.
            if not isinstance(why, Stopped):
                traceback.print_exc()
            report.sweep_soon()
            return self._broken(why)

    def _enter(self, number: int, uuid: str) -> Any:
        running: Running = self.current.running
        running.reports = Call(self.writer, running.line, uuid)
        # It may have been told before there was anything to tell.
        running.tell()
        return _task.enter(running.reports, alone=False)

    def _leave(self, mark: Any) -> None:
        running: Running = self.current.running
        _task.leave(mark)
        if running.reports is not None:
            running.reports.end()

    def _await_coroutines(self) -> None:
        """Gives the tracer of each ``async def`` task a function to call that waits for it."""
        from celery.app import trace

        for name, task in self.app.tasks.items():
            if inspect.iscoroutinefunction(inspect.unwrap(task.run)):
                task.run = self._awaiting(name, task, task.run)
                task.__trace__ = trace.build_tracer(name, task, self.app.loader, self.worker.hostname, app=self.app)

    def _awaiting(self, name: str, owner: Any, run: Any) -> Any:
        def awaited(*args: Any, **kwargs: Any) -> Any:
            coroutine = run(*args, **kwargs)
            running: Running | None = getattr(self.current, "running", None)
            # Another task calls it as a function: on the loop, where no thread's task is known, or in a thread.
            if running is None or owner.request.called_directly:
                return coroutine
            ident = threading.get_ident()
            box: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

            async def scoped() -> Any:
                _ident.set(ident)
                try:
                    return await _Gated(coroutine, running.line)
                except (SystemExit, KeyboardInterrupt) as why:
                    # Raised in a task these end the loop.
                    return _Kept(why)

            def start() -> None:
                with self.lock:
                    told = running.why
                    if told is None:
                        running.name = name
                        running.task = task = self._loop().create_task(scoped())
                if told is not None:
                    coroutine.close()
                    box.put((None, told()))
                    return
                task.add_done_callback(lambda task: box.put(_outcome(task, running)))

            # In a copy of this thread's context, in which the task is known.
            self._loop().call_soon_threadsafe(start)
            value, error = box.get()
            if error is not None:
                raise error
            return value

        awaited.__name__ = getattr(run, "__name__", name)
        return awaited

    def _cancel(self, number: int, reason: str) -> None:
        from celery.exceptions import SoftTimeLimitExceeded

        with self.lock:
            running = self.calls.get(number)
            if running is None or reason in running.told:
                return
            running.told.append(reason)
            running.tell()
            if reason in _STOPPING:
                running.why = SoftTimeLimitExceeded if reason == report.SOFT_TIME_LIMIT else Stopped
                self._stop(running)
        if reason == _LEFT:
            self.writer.close(running.line)
            self.leaving.put(running)

    def _stop(self, running: Running) -> None:
        """Stops a task as it was told to; with the lock."""
        task = running.task
        running.interrupts = task is not None
        if task is not None:
            self._loop().call_soon_threadsafe(task.cancel)
        elif running.thread:
            raise_in(running.thread, running.why)
            if running.why is Stopped:
                hang_up(running.thread, self.channel.socket)

    def _stop_those_left(self) -> None:
        """Stops those again, a few times, that go on though nobody waits for them. The supervisor gives up after that."""
        while True:
            running = self.leaving.get()
            again = [running]
            for pause in _STOP_PAUSES:
                time.sleep(pause)
                while not self.leaving.empty():
                    again.append(self.leaving.get())
                with self.lock:
                    again = [running for running in again if running.thread]
                    for running in again:
                        self._stop(running)
                if not again:
                    break

    def soft_limit(self, *_: object) -> None:
        """Handles the signal for the loop's thread: the task that keeps it is told to stop. Here nothing else can begin to
        run meanwhile."""
        if self.loop is None or asyncio.current_task(self.loop) is None:
            return
        call = _task.current()
        running = next((running for running in list(self.calls.values()) if running.reports is call), None)
        if running is not None and running.interrupts and running.why is not None:
            running.interrupts = False
            raise running.why

    def _watch_loop(self) -> None:
        """Says when a task keeps the loop from all others, and interrupts one that does so though it is to stop."""
        loop, thread = self._loop(), threading.main_thread().ident or 0
        while True:
            came = threading.Event()
            loop.call_soon_threadsafe(came.set)
            waited, told = 0.0, False
            while not came.wait(_GLANCE_SECONDS):
                waited += _GLANCE_SECONDS
                if any(running.interrupts for running in list(self.calls.values())):
                    # Whether it is one of these that keeps the loop is seen there.
                    signal.pthread_kill(thread, signal.SIGUSR1)
                if not told and waited >= _BLOCKED_SECONDS:
                    told = True
                    self._complain(self._on_loop(), thread)
            time.sleep(_GLANCE_SECONDS)

    def _on_loop(self) -> str:
        task = asyncio.current_task(self.loop)
        running = list(self.calls.values()) if task is not None else []
        return next((running.name for running in running if running.task is task), "something")

    @staticmethod
    def _complain(name: str, thread: int) -> None:
        frame = sys._current_frames().get(thread)
        place = "".join(traceback.format_stack(frame, limit=3)) if frame else ""
        logger.warning(
            "the event loop is blocked by %s, and with it all other tasks; use `await`, or `asyncio.to_thread` for "
            "what cannot\n%s",
            name,
            place,
        )


class _Kept:
    """An exception that may not be raised in a task of the loop."""

    def __init__(self, why: BaseException) -> None:
        self.why = why


def _outcome(task: asyncio.Task[Any], running: Running) -> tuple[Any, BaseException | None]:
    running.task = None
    if task.cancelled():
        if running.why is not None:
            return None, running.why()
        # As from a future of another thread: an end of the task, and not of the thread.
        return None, concurrent.futures.CancelledError("the task cancelled itself")
    error = task.exception()
    if error is not None:
        return None, error
    value = task.result()
    return (None, value.why) if isinstance(value, _Kept) else (value, None)


class _Gated:
    """A coroutine that goes on after an ``await`` only when there is room for what it reports."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], line: Line) -> None:
        self.coroutine = coroutine
        self.line = line

    def __await__(self) -> Generator[Any, Any, Any]:
        value: Any = None
        error: BaseException | None = None
        while True:
            try:
                if error is None:
                    waits_for = self.coroutine.send(value)
                else:
                    thrown, error = error, None
                    waits_for = self.coroutine.throw(thrown)
            except StopIteration as end:
                return end.value
            try:
                value = yield waits_for
                if self.line.is_full():
                    yield from self.line.room().__await__()
            except BaseException as why:
                # For the coroutine to see, cancellation above all.
                error = why


def _share(stack: Any) -> None:
    if hasattr(stack, "_local"):
        stack.__ident_func__ = _get_ident


def _get_ident() -> int:
    return _ident.get() or threading.get_ident()
