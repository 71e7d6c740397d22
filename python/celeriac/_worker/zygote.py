"""The process that imports the application, once, and forks the children that run its tasks. It never runs a task.

Its one loop hears the supervisor and the deaths of its children. When the supervisor is gone it kills them, each with
its whole process group, and ends.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import itertools
import json
import os
import select
import signal
import socket
import sys
import threading
import traceback
from collections import deque
from typing import Any

from . import application, child, system, wire

_READ_BYTES = 1 << 16
_FDS_MAX = 64
_SHOWN_TASKS_MAX = 10


def main() -> None:
    """Runs the process that standard input connects to a supervisor."""
    parent = os.getppid()
    system.die_with_parent(parent)
    sock = socket.socket(fileno=os.dup(0))
    _leave_standard_input()
    # From a terminal these come to all of the group; they are for the supervisor.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGQUIT, signal.SIG_IGN)
    channel = wire.Channel(sock)
    received = channel.receive()
    if received is None:
        return
    options = json.loads(received[2])
    try:
        worker = application.load(options)
        manifest = application.manifest(worker)
    except BaseException as why:
        text = "".join(traceback.format_exception(type(why), why, why.__traceback__))
        channel.send(wire.FAILED, 0, json.dumps({"error": f"{type(why).__name__}: {why}", "traceback": text}).encode())
        sys.exit(1)
    if not options.get("describe"):
        advise(channel, worker)
    channel.send(wire.READY, 0, json.dumps(manifest).encode())
    if not options.get("describe"):
        Zygote(worker, sock).run()


def advise(channel: wire.Channel, worker: application.Worker) -> None:
    """Says what would surprise somebody whose worker is lost."""
    tasks = application.streams_early(worker.app)
    if tasks:
        shown = ", ".join(tasks[:_SHOWN_TASKS_MAX]) + (", …" if len(tasks) > _SHOWN_TASKS_MAX else "")
        text = (f"tasks that stream or keep steps are acknowledged early, and end in FAILURE when their worker is lost: {shown}. "
                "With acks_late=True and reject_on_worker_lost=True they go on elsewhere")  # fmt: skip
        channel.send(wire.WARNING, 0, json.dumps(text).encode())


def spawned() -> None:
    """Runs a child that was spawned rather than forked: it imports the application for itself."""
    options, number, place, parent, how = json.loads(sys.argv[1])
    system.die_with_parent(parent)
    sock = socket.socket(fileno=os.dup(0))
    _leave_standard_input()
    os.environ["FORKED_BY_MULTIPROCESSING"] = "1"
    child.run(application.load(options), sock, number, place, parent, **how)


def _leave_standard_input() -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)


_SPAWN = "import sys; sys.path[:] = {path!r}; from celeriac._worker.zygote import spawned; spawned()"


class Zygote:
    """The loop."""

    def __init__(self, worker: application.Worker, sock: socket.socket) -> None:
        self.worker = worker
        self.socket = sock
        self.reader = wire.Reader()
        self.descriptors: deque[int] = deque()
        #: By process id the number and the place of each: the first place that was free when it came, as in Celery's pools.
        self.children: dict[int, tuple[int, int]] = {}
        self.frozen = False
        self.complaints: set[str] = set()
        #: Which import has started a thread, where that is known.
        self.started_by: dict[int, str] = {}
        self.wake_in, self.wake_out = socket.socketpair()

    def run(self) -> None:
        """Forks as it is told, until the supervisor is gone."""
        for end in (self.wake_in, self.wake_out):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.set_wakeup_fd(self.wake_in.fileno(), warn_on_full_buffer=False)
        # From here on the end of the socket says it, and there are children to be killed first.
        system.die_with_parent(0, 0)
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        poll.register(self.wake_out, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _ in poll.poll()}
            if self.wake_out.fileno() in ready:
                with contextlib.suppress(BlockingIOError):
                    self.wake_out.recv(_READ_BYTES)
            self.reap()
            if self.socket.fileno() in ready and not self.hear():
                break
        for pid in self.children:
            system.kill_group(pid)

    def hear(self) -> bool:
        """Does what the supervisor says; ``False`` when it is gone."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self.socket, _READ_BYTES, _FDS_MAX)
        except ConnectionResetError:
            return False
        self.descriptors.extend(descriptors)
        if not data:
            return False
        self.reader.feed(data)
        while (found := self.reader.next()) is not None:
            kind, call, payload = found
            if kind == wire.FORK:
                self.fork(call, self.descriptors.popleft(), json.loads(payload))
            elif kind == wire.IMPORT:
                self.learn(json.loads(payload))
            elif kind == wire.SIGNAL:
                self.signal(**json.loads(payload))
        return True

    def fork(self, number: int, descriptor: int, how: dict[str, Any]) -> None:
        """Forks a child, which talks over ``descriptor``."""
        self.signal("worker_before_create_process")
        taken = {place for _, place in self.children.values()}
        place = next(at for at in itertools.count() if at not in taken)
        if self.worker.options.get("start_method") == "spawn":
            self.spawn(number, place, descriptor, how)
            return
        self.freeze()
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        before = system.threads()
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            self.socket.close()
            self.wake_in.close()
            self.wake_out.close()
            for other in self.descriptors:
                os.close(other)
            child.run(self.worker, socket.socket(fileno=descriptor), number, place, parent, **how)
        os.close(descriptor)
        self.children[pid] = number, place
        self.tell(wire.FORKED, number, {"pid": pid})
        self.complain_of_threads(before)

    def spawn(self, number: int, place: int, descriptor: int, how: dict[str, Any]) -> None:
        """Starts a child from nothing, which talks over ``descriptor``."""
        # The queues were chosen here; signals that concern the worker as a whole are sent there as well, as in Celery.
        told = json.dumps([self.worker.options, number, place, os.getpid(), how])
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-c", _SPAWN.format(path=sys.path), told],
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, descriptor, 0)],
            setsid=True,
        )
        os.close(descriptor)
        self.children[pid] = number, place
        self.tell(wire.FORKED, number, {"pid": pid})

    def freeze(self) -> None:
        """Keeps what is there now out of the collector, which would otherwise write to pages that children share."""
        if not self.frozen:
            gc.collect()
            gc.freeze()
            self.frozen = True

    def complain_of_threads(self, before: dict[int, str]) -> None:
        """Names the threads that were there ``before`` a fork and still are. Libraries that know of forks, as numpy's
        BLAS does, have stopped theirs for it."""
        after = system.threads()
        alive = {number: name for number, name in before.items() if number in after}
        if not alive:
            return
        known = {thread.native_id: thread.name for thread in threading.enumerate()}
        shown = []
        for number, name in sorted(alive.items()):
            text = known.get(number) or f"{name!r}, which Python does not know"
            module = self.started_by.get(number)
            shown.append(f"{text} (since {module} was imported)" if module else text)
        self.complain(f"threads are alive where children are forked, which may hang them: {'; '.join(shown)}. "
                  "Start them in worker_process_init, or use --start-method spawn")  # fmt: skip

    def learn(self, modules: list[str]) -> None:
        """Imports what children were found to import, where that succeeds; the next ones then share it."""
        before = system.threads()
        for name in modules:
            if name in sys.modules:
                continue
            with contextlib.suppress(BaseException):  # some are made by others, or refuse: children import them as before
                importlib.import_module(name)
            now = system.threads()
            self.started_by.update(dict.fromkeys(now.keys() - before.keys(), name))
            before = now
        self.frozen = False

    def signal(self, name: str, **sent: Any) -> None:
        """Sends a signal of Celery's that concerns the whole worker."""
        from celery import signals

        sender = self.worker.hostname if name == "worker_shutting_down" else self.worker
        getattr(signals, name).send(sender=sender, **sent)

    def reap(self) -> None:
        """Tells of children that are gone."""
        for pid in list(self.children):
            try:
                found, status = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                found, status = pid, 0
            if found:
                number, _ = self.children.pop(pid)
                self.tell(wire.EXITED, number, {"pid": pid, "status": os.waitstatus_to_exitcode(status)})

    def complain(self, text: str) -> None:
        """Says once what people should mend."""
        if text not in self.complaints:
            self.complaints.add(text)
            self.tell(wire.ERROR, 0, text)

    def tell(self, kind: int, call: int, what: Any) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendall(wire.frame(kind, call, json.dumps(what).encode()))
