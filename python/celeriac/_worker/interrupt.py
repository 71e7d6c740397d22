"""How a thread is told to stop."""

from __future__ import annotations

import contextlib
import ctypes
import socket
import sys
from typing import Any

#: Functions that wait at a socket when they are innermost: of `socket`, `ssl`, `http.client`, httpcore, redis and their like.
_WAITS = frozenset((
    "connect", "do_handshake", "read", "readinto", "read_from_socket", "_read_from_socket", "recv", "recv_into", "recvfrom",
    "recvfrom_into", "send", "sendall", "write", "create_connection",
))  # fmt: skip
#: Attributes under which they keep it.
_NAMES = ("_sock", "sock", "_socket", "socket")


def raise_in(thread: int, kind: type[BaseException] | None) -> None:
    """Has an exception raised in a thread, as soon as it runs Python; ``None`` takes one back."""
    what = ctypes.py_object(kind) if kind is not None else None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), what)


def hang_up(thread: int, kept: socket.socket) -> None:
    """Ends the conversation that a thread waits at, where that can be told: then it runs Python again.

    Both directions are shut, and the socket stays open: its number cannot become another's while the thread uses it.
    """
    frame = sys._current_frames().get(thread)
    if frame is None or frame.f_code.co_name not in _WAITS:
        return
    for value in list(frame.f_locals.values()):
        sock = _socket_of(value)
        if sock is not None and sock is not kept:
            with contextlib.suppress(OSError):
                # Not that of `ssl`, which changes what the thread is using.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
            return


def _socket_of(value: Any) -> socket.socket | None:
    if isinstance(value, socket.socket):
        return value
    # Without asking properties, which may do anything.
    kept = getattr(value, "__dict__", {})
    return next((kept[name] for name in _NAMES if isinstance(kept.get(name), socket.socket)), None)
