"""What the running task says to the supervisor while it runs, from whichever thread, and what it is told.

Nobody reads the socket while a task runs, but who asks something: a thread that waits for an answer hears all that comes
meanwhile, and every report looks whether something has come.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import queue
import struct
import threading
import time
from collections import deque
from typing import Any

from .._task import StepError, TaskStopped
from . import wire

#: Tokens that come within this time travel together, as they share a record at the supervisor.
TOKEN_SECONDS = 0.02
#: They travel at once when there are so many characters.
TOKEN_CHARACTERS_MAX = 1024
#: A task that is told to stop has gone through its frames by then.
SWEEP_SECONDS = 0.1

NEW, FOUND, STORED, STOPPED, FAILED = range(5)
QUESTION = struct.Struct("<I")
ANSWER = struct.Struct("<IB")
_NAME = struct.Struct("<H")
_NAME_BYTES_MAX = (1 << 16) - 1

SOFT_TIME_LIMIT = "soft_time_limit"
#: Told so, a task that goes on reporting is stopped by that; one that is only to give way may finish what it does.
_STOPS_REPORTS = frozenset((SOFT_TIME_LIMIT, "revoked", "time_limit", "lease_lost"))


class Shield:
    """Keeps an exception that a signal is to raise until a frame is sent whole: half of one would end the conversation.

    Signals are handled in the main thread, between any two of its instructions; other threads need no shield.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._kept: BaseException | None = None

    def raises(self, exception: BaseException) -> None:
        """Raises, now or when the shield is lowered; called by the handler of a signal."""
        if self._depth:
            self._kept = exception
            return
        raise exception

    def drop(self) -> None:
        """Forgets what was to be raised."""
        self._kept = None

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._depth += 1

    def __exit__(self, *_: object) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        self._depth -= 1
        if not self._depth and self._kept is not None:
            kept, self._kept = self._kept, None
            raise kept


class Reporter:
    """The way of one process's tasks to the supervisor; it outlives them."""

    def __init__(self, channel: wire.Channel) -> None:
        self.channel = channel
        self.shield = Shield()
        self._sending = threading.Lock()
        # Held by whoever reads. A question holds it from the first byte to the answer.
        self._reading = threading.Lock()
        self._questions = 0
        self._due: queue.SimpleQueue[Call] = queue.SimpleQueue()
        self._clock: threading.Thread | None = None

    def send(self, kind: int, call: int, payload: bytes, first: Call | None = None) -> None:
        """Sends a frame, and before it the tokens that were streamed before it."""
        with self.shield, self._sending:
            if first is not None:
                first.send_tokens()
            self.channel.send(kind, call, payload)

    def flush(self, call: Call) -> None:
        """Sends the tokens that wait."""
        with self.shield, self._sending:
            call.send_tokens()

    def ask(self, kind: int, call: Call, payload: bytes) -> tuple[int, bytes]:
        """Sends a question, and waits for its answer."""
        with self.shield, self._reading:
            self._questions += 1
            number = self._questions
            self.send(kind, call.number, QUESTION.pack(number) + payload, first=call)
            while True:
                received = self.channel.receive()
                if received is None:
                    call.stop("lease_lost")
                    return STOPPED, b""
                answer = self._hear(received, call)
                if answer is not None and answer[0] == number:
                    return answer[1], answer[2]

    def poll(self, call: Call) -> None:
        """Hears what has come, and waits for nothing."""
        with self.shield:
            if not self._reading.acquire(blocking=False):
                return
            try:
                while (received := self.channel.receive_ready()) is not None:
                    self._hear(received, call)
            finally:
                self._reading.release()

    def due(self, call: Call) -> None:
        """Has the tokens of a call sent when their time has come."""
        if self._clock is None:
            self._clock = threading.Thread(target=self._flush_in_time, name="celeriac-tokens", daemon=True)
            self._clock.start()
        # Of all queues this one may be put to while a signal is handled.
        self._due.put(call)

    def _flush_in_time(self) -> None:
        while True:
            call = self._due.get()
            time.sleep(TOKEN_SECONDS)
            with contextlib.suppress(OSError):
                self.flush(call)

    @staticmethod
    def _hear(received: tuple[int, int, bytes], call: Call) -> tuple[int, int, bytes] | None:
        kind, number, payload = received
        if kind == wire.ANSWER and number == call.number:
            question, status = ANSWER.unpack_from(payload)
            return question, status, payload[ANSWER.size:]
        if kind == wire.CANCEL and number == call.number:
            call.stop(json.loads(payload))
        return None


class Call:
    """One task that runs: what :mod:`celeriac` reports of it."""

    def __init__(self, reporter: Reporter, number: int, task_id: str) -> None:
        self.reporter = reporter
        self.number = number
        self.task_id = task_id
        #: Why it is to stop, once it is.
        self.reason: str | None = None
        self.over = False
        self._reported = False
        # Appending and taking from the left are atomic, so tokens take no lock.
        self._tokens: deque[str] = deque()
        self._characters = 0

    def stop(self, reason: str) -> None:
        """It is told to stop. A soft limit only asks, and what comes after it may still command."""
        if self.reason is None or self.reason == SOFT_TIME_LIMIT:
            self.reason = reason

    def record(self, event: str, data: str) -> None:
        if self.over:
            return
        self._reported = True
        name = _short(event)
        payload = _NAME.pack(len(name)) + name + data.encode()
        self.reporter.send(wire.RECORD, self.number, payload, first=self)
        self.reporter.poll(self)

    def token(self, text: str) -> None:
        if self.over:
            return
        self._reported = True
        begun = not self._tokens
        self._tokens.append(text)
        self._characters += len(text)
        if self._characters >= TOKEN_CHARACTERS_MAX:
            self.reporter.flush(self)
            self.reporter.poll(self)
        elif begun:
            self.reporter.due(self)

    def send_tokens(self) -> None:
        """Sends what was streamed; called by the reporter alone, which keeps the order."""
        if not self._tokens or self.over:
            return
        # Before they are taken, so that a token that comes now is counted for the next time.
        self._characters = 0
        taken = []
        with contextlib.suppress(IndexError):
            while True:
                taken.append(self._tokens.popleft())
        text = "".join(taken).encode("utf-8", "replace")
        self.reporter.channel.send(wire.TOKEN, self.number, text)

    def find_step(self, name: str) -> tuple[str, str | None]:
        return _found(*self._ask(wire.STEP, _short(name), name))

    async def find_step_async(self, name: str) -> tuple[str, str | None]:
        return _found(*await self._ask_async(wire.STEP, _short(name), name))

    def store_step(self, key: str, value: str) -> None:
        self._ask(wire.STEP_DONE, _named(key) + value.encode(), key)

    async def store_step_async(self, key: str, value: str) -> None:
        await self._ask_async(wire.STEP_DONE, _named(key) + value.encode(), key)

    def _ask(self, kind: int, payload: bytes, step: str) -> tuple[int, bytes]:
        if self.over:
            raise StepError(f"step {step!r} is taken after its task has ended")
        return self._heard(*self.reporter.ask(kind, self, payload))

    async def _ask_async(self, kind: int, payload: bytes, step: str) -> tuple[int, bytes]:
        if self.over:
            raise StepError(f"step {step!r} is taken after its task has ended")
        return self._heard(*await self.ask_async(kind, payload))

    async def ask_async(self, kind: int, payload: bytes) -> tuple[int, bytes]:
        """Sends a question, and waits for its answer without keeping the loop."""
        return await asyncio.to_thread(self.reporter.ask, kind, self, payload)

    def _heard(self, status: int, data: bytes) -> tuple[int, bytes]:
        if status == STOPPED:
            raise TaskStopped(self.reason or data.decode() or "shutdown")
        if status == FAILED:
            raise StepError(data.decode())
        return status, data

    def cancelled(self) -> bool:
        if self.reason is None and not self.over:
            self.reporter.poll(self)
        return self.reason is not None

    def check(self) -> None:
        # A thread that the task has left behind is stopped as well.
        if self.reason in _STOPS_REPORTS:
            sweep_soon()
            raise TaskStopped(self.reason or "")

    def settle(self) -> None:
        """Waits until what was reported is written: its followers take the result for the end, and look no further."""
        if self._reported and not self.over:
            self._reported = False
            self.reporter.ask(wire.FLUSH, self, b"")

    def end(self) -> None:
        """The task is over: nothing is reported any more."""
        self.reporter.flush(self)
        self.over = True


_sweep_due = False


def sweep_soon() -> None:
    """Has what a stopped task leaves behind freed when it has ended. Its exception, and the frames that it went through,
    often hold each other, and with them a model's answer; the model goes on writing for as long as that is kept open."""
    global _sweep_due
    if not _sweep_due:
        _sweep_due = True
        timer = threading.Timer(SWEEP_SECONDS, _sweep)
        timer.daemon = True
        timer.start()


def _sweep() -> None:
    global _sweep_due
    # First: who is stopped from here on has to be swept once more.
    _sweep_due = False
    gc.collect()


def _found(status: int, data: bytes) -> tuple[str, str | None]:
    """The key of a step, and its value if it has one."""
    if status == FOUND:
        (length,) = _NAME.unpack_from(data)
        at = _NAME.size + length
        return data[_NAME.size:at].decode(), data[at:].decode()
    return data.decode(), None


def _named(key: str) -> bytes:
    name = key.encode()
    return _NAME.pack(len(name)) + name


def _short(name: Any) -> bytes:
    found = str(name).encode("utf-8", "replace")
    if len(found) > _NAME_BYTES_MAX:
        raise ValueError(f"a name of {len(found)} bytes; {_NAME_BYTES_MAX} at most")
    return found
