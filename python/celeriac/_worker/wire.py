"""Frames between the supervisor and its Python processes, over Unix sockets.

A frame is ``length: u32, kind: u8, call: u32`` and a payload; numbers are little-endian and the length counts what comes
after itself. ``call`` numbers a task on its child, or a child on the zygote. Payloads are JSON unless said otherwise.

====================  =====  =========  ==================================================================================
kind                  value  direction  payload
====================  =====  =========  ==================================================================================
START                     1  to zygote  the options of the process
FORK                      2  to zygote  none; the child's end of its socket comes along as a file descriptor
IMPORT                    3  to zygote  names of modules, to be imported before the next fork
SIGNAL                    4  to zygote  a signal of Celery's to send: its ``name``, and what goes with it: ``worker_ready`` …
READY                    10  to super.  the manifest of the application
FORKED                   11  to super.  the process id of the child
EXITED                   12  to super.  its status, as Python's ``waitstatus_to_exitcode`` has it
FAILED                   13  to super.  why there is no application
WARNING                  14  to super.  something that people should know
ERROR                    15  to super.  something that they should mend
TASK                     20  to child   ``deliveries: u32, queue length: u16, queue, head length: u32, head, body``: the
                                        envelope without its body as JSON, and the body's bytes, both as they travelled
CONCLUDE                 21  to child   ``length: u32``, the verdict, and the payload of TASK
CANCEL                   22  to child   why the call is to stop: ``soft_time_limit``, ``revoked``, ``time_limit`` …
STOP                     23  to child   none: exit, now that nothing runs
ANSWER                   24  to child   ``question: u32, status: u8``, then by status, see below
PING                     25  to child   none: does it still run anything? A process of many answers with PONG
HELLO                    30  to super.  the child is ready: its process id
END                      31  to super.  ``outcome: u8, runtime: f64``; then by outcome, see ``child``
CONCLUDED                32  to super.  what stands stored
MODULES                  33  to super.  names of modules that were imported while tasks ran
SPENT                    34  to super.  none: what a task has left behind here may go on; another child is to take over
RECORD                   40  to super.  a record of the task's log: ``event length: u16, event``, and its data
STEP                     41  to super.  ``question: u32``, and the name of a durable step that is to be taken
STEP_DONE                42  to super.  ``question: u32, key length: u16, key``, and the value that the step has returned
TOKEN                    43  to super.  text that the task streams, as UTF-8
FLUSH                    44  to super.  ``question: u32``: what was reported so far is to be written
STORE                    45  to super.  ``question: u32, late: u8``, and JSON as ``POST /api/v1/messages`` has it, with
                                        ``results`` and ``parts``: to be written now, or with the end of the task
FETCH                    46  to super.  ``question: u32``, and the ids of tasks whose metas are wanted
PONG                     47  to super.  none: it does
ORDER                    48  to super.  ``question: u32``, and JSON: what is to be done in the store, one of ``revoke``,
                                        ``forget``, ``save_group``, ``group``, ``delete_group``: and with what
====================  =====  =========  ==================================================================================

The statuses of an answer: NEW, the step is to be taken, and its key; FOUND, ``key length: u16, key`` and the value it has;
STORED, it is written or kept for the end; for FETCH and ORDER, FOUND and the metas, or what else there is to tell; STOPPED, the
task is to stop, and why; FAILED, and why.
"""

from __future__ import annotations

import socket
import struct

#: Both halves must be of one version.
VERSION = 4

START, FORK, IMPORT, SIGNAL = 1, 2, 3, 4
READY, FORKED, EXITED, FAILED, WARNING, ERROR = 10, 11, 12, 13, 14, 15
TASK, CONCLUDE, CANCEL, STOP, ANSWER, PING = 20, 21, 22, 23, 24, 25
HELLO, END, CONCLUDED, MODULES, SPENT = 30, 31, 32, 33, 34
RECORD, STEP, STEP_DONE, TOKEN, FLUSH, STORE, FETCH, PONG, ORDER = range(40, 49)

HEADER = struct.Struct("<IBI")
#: A frame holds so many bytes at most; the supervisor bounds what it sends by its own settings.
FRAME_BYTES_MAX = 1 << 30
_READ_BYTES = 1 << 16
_BEFORE_PAYLOAD = HEADER.size - 4


def frame(kind: int, call: int, payload: bytes = b"") -> bytes:
    """A frame as it is sent."""
    return HEADER.pack(_BEFORE_PAYLOAD + len(payload), kind, call) + payload


class Reader:
    """Takes a stream of bytes apart into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """Adds what was received."""
        self._buffer += data

    def next(self) -> tuple[int, int, bytes] | None:
        """The next whole frame: kind, call and payload."""
        buffer = self._buffer
        if len(buffer) < HEADER.size:
            return None
        length, kind, call = HEADER.unpack_from(buffer)
        end = 4 + length
        if length < _BEFORE_PAYLOAD or length > FRAME_BYTES_MAX:
            raise ConnectionError(f"a frame of {length} bytes")
        if len(buffer) < end:
            return None
        payload = bytes(memoryview(buffer)[HEADER.size:end])
        del buffer[:end]
        return kind, call, payload


class Channel:
    """A socket that blocks, frame by frame."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._reader = Reader()

    def send(self, kind: int, call: int, payload: bytes = b"") -> None:
        """Sends a frame."""
        self.socket.sendall(frame(kind, call, payload))

    def receive(self) -> tuple[int, int, bytes] | None:
        """Waits for the next frame; ``None`` when the other side is gone."""
        while True:
            found = self._reader.next()
            if found is not None:
                return found
            data = self.socket.recv(_READ_BYTES)
            if not data:
                return None
            self._reader.feed(data)

    def receive_ready(self) -> tuple[int, int, bytes] | None:
        """The next frame that has come; ``None`` when none has, or the other side is gone."""
        found = self._reader.next()
        while found is None:
            try:
                data = self.socket.recv(_READ_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return None
            if not data:
                return None
            self._reader.feed(data)
            found = self._reader.next()
        return found
