"""What the processes ask of the operating system."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int, number: int = signal.SIGKILL) -> None:
    """Has the system send this process a signal when its parent is gone, where it can; 0 takes that back."""
    # Not Linux: the end of the socket says so as well, only later.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    if number and os.getppid() != parent:
        os.kill(os.getpid(), number)


def kill_group(leader: int) -> None:
    """Kills a process with all that it has started in its group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
    # It may not lead a group yet.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(leader, signal.SIGKILL)


def threads() -> dict[int, str]:
    """The threads of this process beside its main one, those that Python does not know included: by the system's number,
    with the system's name."""
    found = {}
    with contextlib.suppress(OSError):
        for number in map(int, os.listdir("/proc/self/task")):
            # It may be over by now.
            with contextlib.suppress(OSError), open(f"/proc/self/task/{number}/comm") as name:
                found[number] = name.read().strip()
    found.pop(os.getpid(), None)
    return found
