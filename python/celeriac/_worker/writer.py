"""What many tasks of one process say to the supervisor: each has a line, and one thread writes what is in them.

In the thread of a task an exception may be raised between any two instructions. So a task only puts things into queues, each
in one step that cannot be cut in half; locks and counts are the writer's alone. What is sent of one call and not yet known to
be written is bounded, and so is what waits in its line: who says more waits, in a coroutine at its next ``await``.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from .._task import StepError
from . import report, wire

#: Frames and bytes of a call that are sent before it is heard that the first of them are written. The supervisor has room
#: for more (`REPORTS_MAX` in `crates/celeriac-python/src/link.rs`).
_WINDOW_FRAMES = 128
_WINDOW_BYTES = 1 << 18
#: What a line holds before those who add to it wait.
_LINE_MAX = 256
#: On the loop nobody can wait but at an ``await``, which may be some way off; from here on the loop itself waits.
_LINE_MAX_ON_LOOP = 1024
#: So many pieces of text are sent without waiting for more.
_PIECES = 32
_WAKES = 1000

#: Called with status and data of an answer, by a thread that must not be kept.
Tell = Callable[[tuple[int, bytes]], Any]
_ENDS = (wire.END, wire.CONCLUDED, wire.PONG)


class Line:
    """What one call says, in its order."""

    def __init__(self, writer: Writer, number: int) -> None:
        self.writer = writer
        self.number = number
        self._waiting: deque[tuple[int, Any, Tell | None]] = deque()
        #: Called when there is room again.
        self._rooms: deque[Callable[[], Any]] = deque()
        #: The supervisor hears no more of it, but its end.
        self.closed = False
        #: It has only pieces of text, which wait for more. Set by the writer alone, and looked at after adding.
        self._rests = False
        self._urgent = False
        # Of the writer alone: what is under way, as question and size, and how much of it is behind the last question.
        self._flight: deque[tuple[int, int]] = deque()
        self._flying = 0
        self._unasked = 0
        self._unasked_bytes = 0
        # Added by the writer, and taken by who hears the answer.
        self._questions: dict[int, Tell | None] = {}
        self._numbers = itertools.count(1)

    def put(self, kind: int, payload: Any, tell: Tell | None = None) -> None:
        """Adds a frame, and waits for room before; ``tell`` gets the answer, where there is one."""
        if kind not in _ENDS:
            self._wait()
        self._waiting.append((kind, payload, tell))
        if kind != wire.TOKEN:
            self._urgent = True
        if kind != wire.TOKEN or not self._rests or len(self._waiting) == _PIECES:
            self.writer.wake(self)

    def is_full(self) -> bool:
        """Whether who adds to it should wait."""
        return len(self._waiting) >= _LINE_MAX and not self.closed

    def _wait(self) -> None:
        most = _LINE_MAX_ON_LOOP if self.writer.is_loop() else _LINE_MAX
        while len(self._waiting) >= most and not self.closed:
            box: queue.SimpleQueue[None] = queue.SimpleQueue()
            self._rooms.append(lambda: box.put(None))
            # Looked at again, since whoever makes room has perhaps just looked.
            if len(self._waiting) >= most and not self.closed:
                box.get()

    async def room(self) -> None:
        """Waits until there is room, on the loop."""
        loop = asyncio.get_running_loop()
        while self.is_full():
            future: asyncio.Future[None] = loop.create_future()
            self._rooms.append(lambda: _tell_loop(loop, future, None))
            if self.is_full():
                await future

    def answer(self, question: int, status: int, data: bytes) -> None:
        """An answer has come."""
        tell = self._questions.pop(question, None)
        if tell is not None:
            tell((status, data))
        self.writer.wake(self, question)

    # What follows is the writer's.

    def rests(self) -> bool:
        """Whether what it has may wait for more."""
        self._rests = not self._urgent and not self.closed and 0 < len(self._waiting) < _PIECES
        return self._rests

    def heard(self, question: int) -> None:
        """Whatever was sent up to a question is written."""
        if not any(number == question for number, _ in self._flight):
            return
        while True:
            number, size = self._flight.popleft()
            self._flying -= size
            if number == question:
                return

    def close(self) -> None:
        """Nobody hears of it any more: who waits for an answer has it here."""
        self.closed = True
        for question in list(self._questions):
            tell = self._questions.pop(question, None)
            if tell is not None:
                tell((report.STOPPED, b""))

    def take(self, out: list[bytes]) -> None:
        """Takes as much as may be sent now."""
        self._rests = self._urgent = False
        while self._waiting:
            kind = self._waiting[0][0]
            if kind not in _ENDS and not self.closed and self._is_far_ahead():
                break
            kind, payload, tell = self._waiting.popleft()
            if kind in _ENDS:
                out.append(wire.frame(kind, self.number, payload))
                if kind != wire.PONG:
                    self.close()
            elif self.closed:
                if tell is not None:
                    tell((report.STOPPED, b""))
            else:
                self._send(out, kind, payload, tell)
        while self._rooms and (self.closed or len(self._waiting) < _LINE_MAX):
            self._rooms.popleft()()

    def _is_far_ahead(self) -> bool:
        return len(self._flight) >= _WINDOW_FRAMES - 1 or self._flying >= _WINDOW_BYTES

    def _send(self, out: list[bytes], kind: int, payload: Any, tell: Tell | None) -> None:
        if kind == wire.TOKEN:
            pieces = [payload]
            length = len(payload)
            while self._waiting and self._waiting[0][0] == wire.TOKEN and length < _WINDOW_BYTES // 8:
                pieces.append(self._waiting.popleft()[1])
                length += len(pieces[-1])
            payload = "".join(pieces).encode("utf-8", "replace")
        self._fly(out, kind, payload, tell, asks=tell is not None)
        if self._unasked >= _WINDOW_FRAMES // 2 or self._unasked_bytes >= _WINDOW_BYTES // 2:
            self._fly(out, wire.FLUSH, b"", None, asks=True)

    def _fly(self, out: list[bytes], kind: int, payload: bytes, tell: Tell | None, *, asks: bool) -> None:
        number = 0
        if asks:
            number = next(self._numbers)
            self._questions[number] = tell
            payload = report.QUESTION.pack(number) + payload
            self._unasked = self._unasked_bytes = 0
        else:
            self._unasked += 1
            self._unasked_bytes += len(payload)
        out.append(wire.frame(kind, self.number, payload))
        self._flight.append((number, len(payload)))
        self._flying += len(payload)


class Writer:
    """The thread that writes, as :class:`report.Reporter` is for a process with one task."""

    def __init__(self, channel: wire.Channel) -> None:
        self.channel = channel
        #: Of the thread of the loop, where there is one: what would wait there keeps all from running.
        self.loop_thread = 0
        self._wakes: queue.SimpleQueue[tuple[Line, int]] = queue.SimpleQueue()

    def start(self) -> None:
        """Begins to write; until then the channel may be used by others."""
        threading.Thread(target=self._run, name="celeriac-writer", daemon=True).start()

    def is_loop(self) -> bool:
        """Whether this is the thread of the loop."""
        return threading.get_ident() == self.loop_thread

    def wake(self, line: Line, heard: int = 0) -> None:
        """There is something to do for a line."""
        self._wakes.put((line, heard))

    def close(self, line: Line) -> None:
        """The supervisor hears no more of a call."""
        self._wakes.put((line, -1))

    def say(self, kind: int, number: int, payload: bytes) -> None:
        """Sends what belongs to no task."""
        Line(self, number).put(kind, payload)

    def send(self, kind: int, call: int, payload: bytes, first: Call) -> None:
        """Sends a report, in the order of its call."""
        first.line.put(kind, payload)

    def ask(self, kind: int, call: Call, payload: bytes) -> tuple[int, bytes]:
        """Sends a question, and waits for its answer."""
        box: queue.SimpleQueue[tuple[int, bytes]] = queue.SimpleQueue()
        call.line.put(kind, payload, box.put)
        return box.get()

    def poll(self, call: Call) -> None:
        """What comes is heard by a thread of its own."""

    def _run(self) -> None:
        resting: dict[Line, None] = {}
        due = 0.0
        with contextlib.suppress(OSError):
            while True:
                ready = self._next(max(0.0, due - time.monotonic()) if resting else None)
                now = time.monotonic()
                out: list[bytes] = []
                if resting and now >= due:
                    ready.update(resting)
                    for line in resting:
                        ready.pop(line, None)
                        line.take(out)
                    resting.clear()
                for line in ready:
                    if not line.rests():
                        resting.pop(line, None)
                        line.take(out)
                    elif line not in resting:
                        if not resting:
                            due = now + report.TOKEN_SECONDS
                        resting[line] = None
                if out:
                    self.channel.socket.sendall(b"".join(out))

    def _next(self, wait: float | None) -> dict[Line, None]:
        ready: dict[Line, None] = {}
        with contextlib.suppress(queue.Empty):
            line, heard = self._wakes.get(timeout=wait)
            for _ in range(_WAKES):
                if heard > 0:
                    line.heard(heard)
                elif heard < 0:
                    line.close()
                ready[line] = None
                line, heard = self._wakes.get_nowait()
            self._wakes.put((line, heard))
        return ready


class Call(report.Call):
    """One of many tasks that run."""

    def __init__(self, writer: Writer, line: Line, task_id: str) -> None:
        super().__init__(writer, line.number, task_id)  # type: ignore[arg-type]
        self.line = line

    def token(self, text: str) -> None:
        if not self.over:
            self._reported = True
            self.line.put(wire.TOKEN, text)

    def find_step(self, name: str) -> tuple[str, str | None]:
        if self.line.writer.is_loop():
            raise StepError(f"step {name!r} would keep every task of this loop waiting; with an async function, `await "
                            "celeriac.step(…)`, and else `await asyncio.to_thread(celeriac.step, …)`")  # fmt: skip
        return super().find_step(name)

    async def ask_async(self, kind: int, payload: bytes) -> tuple[int, bytes]:
        await self.line.room()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[tuple[int, bytes]] = loop.create_future()
        self.line.put(kind, payload, lambda answer: _tell_loop(loop, future, answer))
        return await future

    def end(self) -> None:
        # What was said before the end goes before it, in the same line.
        self.over = True


def _tell_loop(loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any], value: Any) -> None:
    def tell() -> None:
        if not future.done():
            future.set_result(value)

    # A loop of the task's own may be gone.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(tell)
