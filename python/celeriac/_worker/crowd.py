"""A process that runs many tasks at once: on threads, and with the pool ``asyncio`` those that are ``async def`` on one loop.

Celery's tracer runs on a thread for each task, as it is; what an ``async def`` task returns to it is awaited on the loop, in
a context in which Celery finds the request of that thread. So all that Celery does around a task is done around these.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import ctypes
import inspect
import json
import logging
import queue
import socket
import sys
import threading
import time
import traceback
from typing import Any

from . import report, wire
from .application import Worker
from .child import Child

logger = logging.getLogger("celeriac.worker")
#: A loop that does not come round for so long is told of.
_BLOCKED_SECONDS = 1.0
#: The thread whose task a coroutine is.
_ident: contextvars.ContextVar[int | None] = contextvars.ContextVar("celeriac_ident", default=None)


class Stopped(BaseException):
    """Ends a task that is told to stop. No ``except Exception`` holds it up."""


class Running:
    """A task that runs here."""

    def __init__(self) -> None:
        self.thread = 0
        self.name = ""
        self.task: asyncio.Task[Any] | None = None
        self.why: type[BaseException] | None = None


class Crowd(Child):
    """The process."""

    def __init__(self, worker: Worker, sock: socket.socket, pool: str) -> None:
        super().__init__(worker, sock)
        self.pool = pool
        self.calls: dict[int, Running] = {}
        # Held for moments, and never while anything of the application's runs.
        self.lock = threading.Lock()
        self.sending = threading.Lock()
        # The supervisor bounds what is in it: it sends no more than it has seats.
        self.work: queue.SimpleQueue[tuple[int, int, bytes]] = queue.SimpleQueue()
        self.threads = 0
        self.idle = 0
        self.loop: asyncio.AbstractEventLoop | None = None
        self.current = threading.local()

    def serve(self) -> int:
        """Runs tasks until told to stop; returns the exit code."""
        from celery import _state

        # Before any task runs: its request is found where its coroutine runs, too.
        _share(_state._task_stack)
        for task in self.app.tasks.values():
            _share(task.request_stack)
        if self.pool != "asyncio":
            return super().serve()
        self._await_coroutines()
        self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)
        threading.Thread(target=self._watch_loop, name="celeriac-watch", daemon=True).start()
        code = [1]
        threading.Thread(target=self._talk, args=(code,), name="celeriac-talk", daemon=True).start()
        self.loop.run_forever()
        return code[0]

    def _talk(self, code: list[int]) -> None:
        try:
            code[0] = super().serve()
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            self._loop().call_soon_threadsafe(self._loop().stop)

    def _loop(self) -> asyncio.AbstractEventLoop:
        assert self.loop is not None
        return self.loop

    def take(self, kind: int, call: int, payload: bytes) -> None:
        """Has a frame dealt with on a thread, of which there come as many as are needed at once."""
        if kind == wire.CANCEL:
            self._cancel(call, payload)
            return
        with self.lock:
            if kind == wire.TASK:
                self.calls[call] = Running()
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
            try:
                self._deal(kind, call, payload)
            except (BrokenPipeError, ConnectionResetError):
                return
            except BaseException:
                traceback.print_exc()
            with self.lock:
                self.idle += 1

    def _deal(self, kind: int, number: int, payload: bytes) -> None:
        if kind == wire.CONCLUDE:
            self._send(wire.CONCLUDED, number, self._conclude(payload))
            return
        with self.lock:
            running = self.calls[number]
            running.thread = threading.get_ident()
            why = running.why
        self.current.running = running
        try:
            if why is not None:
                raise why
            end = self._run(payload, number)
        except BaseException as why:
            # Told to stop, or what would end a process that the task had for itself.
            if not isinstance(why, Stopped):
                traceback.print_exc()
            end = self._broken(why)
        finally:
            with self.lock:
                running.thread = 0
                self.calls.pop(number, None)
                # One that comes too late for its task must not meet the next.
                _raise_in(threading.get_ident(), None)
            self.current.running = None
        self._send(wire.END, number, end)

    def _enter(self, number: int, uuid: str) -> Any:
        """Many tasks share the socket here, and its reader: they report as under Celery's own worker."""

    def _leave(self, mark: Any) -> None:
        """Nothing was entered."""

    def _send(self, kind: int, number: int, payload: bytes) -> None:
        with self.sending:
            self.channel.send(kind, number, payload)

    def _await_coroutines(self) -> None:
        """Gives the tracer of each ``async def`` task a function to call that waits for it."""
        from celery.app import trace

        for name, task in self.app.tasks.items():
            if inspect.iscoroutinefunction(inspect.unwrap(task.run)):
                task.run = self._awaiting(name, task.run)
                task.__trace__ = trace.build_tracer(name, task, self.app.loader, self.worker.hostname, app=self.app)

    def _awaiting(self, name: str, run: Any) -> Any:
        def awaited(*args: Any, **kwargs: Any) -> Any:
            running: Running = self.current.running
            coroutine = run(*args, **kwargs)
            ident = threading.get_ident()

            async def scoped() -> Any:
                _ident.set(ident)
                with self.lock:
                    running.task, running.name = asyncio.current_task(), name
                    told = running.why
                if told is not None:
                    coroutine.close()
                    raise told
                try:
                    return await coroutine
                except asyncio.CancelledError:
                    if running.why is not None:
                        raise running.why from None
                    raise
                finally:
                    with self.lock:
                        running.task = None

            future: concurrent.futures.Future[Any] = asyncio.run_coroutine_threadsafe(scoped(), self._loop())
            return future.result()

        awaited.__name__ = getattr(run, "__name__", name)
        return awaited

    def _cancel(self, number: int, payload: bytes) -> None:
        from celery.exceptions import SoftTimeLimitExceeded

        with self.lock:
            running = self.calls.get(number)
            if running is None:
                return
            running.why = SoftTimeLimitExceeded if json.loads(payload) == report.SOFT_TIME_LIMIT else Stopped
            if running.task is not None:
                self._loop().call_soon_threadsafe(running.task.cancel)
            elif running.thread:
                _raise_in(running.thread, running.why)

    def _watch_loop(self) -> None:
        """Says when a task keeps the loop from all others."""
        loop = self._loop()
        while True:
            came = threading.Event()
            loop.call_soon_threadsafe(came.set)
            if came.wait(_BLOCKED_SECONDS):
                time.sleep(_BLOCKED_SECONDS / 2)
                continue
            task = asyncio.current_task(loop)
            with self.lock:
                name = next((running.name for running in self.calls.values() if running.task is task), "something")
            frame = sys._current_frames().get(threading.main_thread().ident or 0)
            place = "".join(traceback.format_stack(frame, limit=3)) if frame else ""
            logger.warning(
                "the event loop is blocked by %s, and with it all other tasks; use `await`, or `asyncio.to_thread` for "
                "what cannot\n%s",
                name,
                place,
            )
            came.wait()


def _share(stack: Any) -> None:
    if hasattr(stack, "_local"):
        stack.__ident_func__ = _get_ident


def _get_ident() -> int:
    return _ident.get() or threading.get_ident()


def _raise_in(thread: int, kind: type[BaseException] | None) -> None:
    """Has an exception raised in a thread, as soon as it runs Python; ``None`` takes one back."""
    what = ctypes.py_object(kind) if kind is not None else None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), what)
