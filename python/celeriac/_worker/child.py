"""A process that runs tasks with Celery's own tracer, one at a time, as its supervisor sends them.

An END has an outcome and the seconds that the run took, and then:

=========  ==========================================================================================================
SUCCEEDED  ``length: u32`` and the result, ``length: u32`` and the value as Python prints it, then the value as JSON
FAILED     ``length: u32`` and the result, JSON: ``type``, ``module``, ``args``, ``shown``, ``traceback``
RETRIED    the same
IGNORED    nothing
REJECTED   JSON: ``requeue``, ``reason``
BROKEN     JSON: ``why``; the task is lost, and not the process
STOPPED    why: it was told to stop, and did before anything was stored
=========  ==========================================================================================================

The result is Celery's meta as JSON where it is left to the supervisor to store, and else empty; the value is empty where
the result has it or where it cannot be shown.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import socket
import struct
import sys
import threading
import traceback
from typing import Any

from .. import _link, _task
from . import errback, report, store, system, verdicts, wire
from .application import Worker

SUCCEEDED, FAILED, RETRIED, IGNORED, REJECTED, BROKEN, STOPPED = range(7)
_END = struct.Struct("<Bd")
_LENGTH = struct.Struct("<I")
_TASK = struct.Struct("<IH")
#: Values beyond this are not shown in the task's log.
_SHOWN_BYTES_MAX = 64 * 1024
#: Tasks after which modules are no longer looked for.
_LEARNING_TASKS = 3
#: Results beyond this go their own way.
_LEFT_BYTES_MAX = 1 << 20
_NOTHING = b"\0\0\0\0"


class Call(threading.local):
    """What runs in a thread."""

    #: The id of the task; a soft limit that comes when none runs means one that is over.
    running: str | None = None
    #: Its result, where that is left to the supervisor.
    left = b""
    value: Any = None
    has_value = False

    def begin(self, uuid: str) -> None:
        """Notes that a task begins."""
        self.clear()
        self.running = uuid

    def clear(self) -> None:
        """Forgets what was returned."""
        self.left, self.value, self.has_value = b"", None, False


class Child:
    """The process."""

    def __init__(self, worker: Worker, sock: socket.socket) -> None:
        from celery.signals import task_received

        #: Celery's signal, sent where somebody listens.
        self.received = task_received
        self.worker = worker
        self.app = worker.app
        self.channel = wire.Channel(sock)
        #: What runs in this thread.
        self.call = Call()
        #: Tasks that nobody watches in this process, by name: nobody misses their results before the supervisor has them.
        self._unwatched: dict[str, bool] = {}
        self.reporter = report.Reporter(self.channel)
        #: What is reported of the task that runs.
        self.reports: report.Call | None = None
        self._done = 0
        self._modules: set[str] = set()
        #: Whether this process is to go, and with it what a task has left behind.
        self._spent = False
        #: Whether the supervisor is gone.
        self.orphaned = False

    def serve(self) -> int:
        """Runs tasks until told to stop; returns the exit code."""
        self._modules = set(sys.modules)
        self.channel.send(wire.HELLO, 0, json.dumps({"pid": os.getpid()}).encode())
        code = 0
        while (received := self.channel.receive()) is not None:
            kind, call, payload = received
            if kind == wire.STOP:
                break
            self.take(kind, call, payload)
        else:
            self.orphaned = True
        return code

    def take(self, kind: int, call: int, payload: bytes) -> None:
        """Deals with a frame."""
        if kind == wire.TASK:
            end = self._run(payload, call)
            # Before the end, after which nobody listens until the next task.
            self._learn()
            if self._spent:
                self.channel.send(wire.SPENT, 0, b"")
            self.channel.send(wire.END, call, end)
        elif kind == wire.CONCLUDE:
            self.channel.send(wire.CONCLUDED, call, self._conclude(payload))

    def _learn(self) -> None:
        """Tells of modules that the first tasks have imported, so that the next children have them from the start."""
        if self._done >= _LEARNING_TASKS:
            return
        self._done += 1
        new = [name for name in list(sys.modules) if name not in self._modules and not name.startswith("__")]
        if new:
            self._modules.update(new)
            self.channel.send(wire.MODULES, 0, json.dumps(new).encode())

    def soft_limit(self, *_: object) -> None:
        """Handles the signal of the soft time limit: Celery's exception, in the midst of the task."""
        from billiard.exceptions import SoftTimeLimitExceeded

        if self.call.running is None:
            return
        if self.reports is not None:
            self.reports.stop(report.SOFT_TIME_LIMIT)
        self.reporter.shield.raises(SoftTimeLimitExceeded())

    def _run(self, payload: bytes, number: int) -> bytes:
        from celery.app import trace
        from celery.exceptions import Reject

        request, body, content_type, content_encoding = self.request(payload)
        name, uuid = request["task"], request["id"]
        if self.received.receivers:
            self._tell_received(request, body, payload)
        self.call.begin(uuid)
        mark = self._enter(number, uuid)
        try:
            errback_body = errback.called(self.app, request, body, content_type, content_encoding)
            if errback_body is not None:
                body, content_type, content_encoding = errback_body, None, None
            failed, value, runtime = trace.fast_trace_task(name, uuid, request, body, content_type, content_encoding)
        except Reject as why:
            self.call.running = None
            return _rejected(why)
        except Exception as why:
            # What cannot even be decoded: Celery's master stores such an end.
            self.call.running = None
            return self._internal(request, why)
        except _task.TaskStopped as why:
            self.call.running = None
            return self._stopped(request, body, content_type, content_encoding, why)
        finally:
            self.call.running = None
            self._leave(mark)
        if not failed:
            return self._succeeded(str(value), float(runtime))
        return self._failed(value, float(runtime or 0.0), name)

    def _enter(self, number: int, uuid: str) -> Any:
        """A task begins: what it reports goes to the supervisor."""
        self.reports = report.Call(self.reporter, number, uuid)
        return _task.enter(self.reports, alone=True)

    def _leave(self, mark: Any) -> None:
        """It is over."""
        _task.leave(mark)
        self.reporter.shield.drop()
        if self.reports is not None:
            self.reports.end()

    def request(self, payload: bytes) -> tuple[dict[str, Any], Any, str | None, str | None]:
        deliveries, queue, message, body = _read(payload)
        headers = message.get("headers") or {}
        properties = message.get("properties") or {}
        compression = headers.get("compression")
        if compression:
            from kombu.compression import decompress

            body = decompress(body, compression)
        content_type, content_encoding = message.get("content-type"), message.get("content-encoding")
        if "task" in headers:
            request = headers
        else:
            body, request = self._protocol_1(body, content_type, content_encoding)
            content_type = content_encoding = None
        info = properties.get("delivery_info") or {}
        request.update(
            properties=properties,
            reply_to=properties.get("reply_to"),
            correlation_id=properties.get("correlation_id"),
            hostname=self.worker.hostname,
            delivery_info={
                "exchange": info.get("exchange"),
                "routing_key": info.get("routing_key") or queue,
                "priority": properties.get("priority"),
                "redelivered": deliveries > 1 or info.get("redelivered", False),
            },
        )
        return request, body, content_type, content_encoding

    def message(self, payload: bytes) -> Any:
        """The message as Celery's signals have it. It is settled elsewhere."""
        from kombu.message import Message
        from kombu.serialization import prepare_accept_content

        _, queue, message, body = _read(payload)
        properties = dict(message.get("properties") or {})
        info = properties.pop("delivery_info", None) or {}
        return Message(
            body=body,
            content_type=message.get("content-type"),
            content_encoding=message.get("content-encoding"),
            delivery_info={"exchange": info.get("exchange"), "routing_key": info.get("routing_key") or queue},
            properties=properties,
            headers=message.get("headers") or {},
            accept=prepare_accept_content(self.app.conf.accept_content),
        )

    def _tell_received(self, request: dict[str, Any], body: Any, payload: bytes) -> None:
        from celery.worker.request import Request

        try:
            # One of protocol 1 is decoded already.
            whole = {} if isinstance(body, bytes) else {"body": body, "decoded": True}
            told = Request(self.message(payload), app=self.app, hostname=self.worker.hostname, headers=request,
                           task=self.app.tasks[request["task"]], **whole)  # fmt: skip
            self.received.send(sender=self.worker, request=told)
        except Exception:
            # The task runs all the same.
            traceback.print_exc()

    def _protocol_1(self, body: Any, content_type: str | None, content_encoding: str | None) -> tuple[Any, dict[str, Any]]:
        from celery.worker.strategy import proto1_to_proto2
        from kombu.serialization import loads, prepare_accept_content

        accept = prepare_accept_content(self.app.conf.accept_content)
        decoded = loads(body, content_type, content_encoding, accept=accept)
        triple, headers, _, _ = proto1_to_proto2(None, decoded)
        return triple, headers

    def _succeeded(self, shown: str, runtime: float) -> bytes:
        text = shown.encode("utf-8", "backslashreplace")
        call, value = self.call, b""
        left = call.left
        if call.has_value and not left:
            value = _encoded(call.value)
        call.clear()
        return b"".join((_END.pack(SUCCEEDED, runtime), _LENGTH.pack(len(left)), left,
                         _LENGTH.pack(len(text)), text, value))  # fmt: skip

    def _failed(self, info: Any, runtime: float, name: str) -> bytes:
        from celery.exceptions import Ignore, Reject, Retry
        from kombu.utils.encoding import safe_repr

        exception = getattr(info.exception, "exc", info.exception)
        if isinstance(info.exception, (Retry, Reject, Ignore)):
            exception = info.exception
        if isinstance(exception, Reject):
            return _rejected(exception)
        if isinstance(exception, Ignore):
            return _END.pack(IGNORED, runtime)
        outcome, shown = FAILED, safe_repr(exception)
        if isinstance(exception, Retry):
            outcome, shown = RETRIED, safe_repr(exception.exc)
            exception = exception.exc if isinstance(exception.exc, BaseException) else exception
        left = self.call.left if outcome == FAILED else b""
        fault = self._fault(exception, shown, info.traceback)
        return b"".join((_END.pack(outcome, runtime), _LENGTH.pack(len(left)), left, fault))

    def _fault(self, exception: BaseException, shown: str, trace: str | None) -> bytes:
        try:
            stored = self.app.backend.prepare_exception(exception, "json")
            module, kind, args = stored["exc_module"], stored["exc_type"], stored["exc_message"]
            return json.dumps({"type": kind, "module": module, "args": list(args), "shown": shown,
                               "traceback": trace}, default=repr).encode()  # fmt: skip
        except Exception:
            kind = type(exception)
            return json.dumps({"type": kind.__name__, "module": kind.__module__, "args": [str(exception)],
                               "shown": shown, "traceback": trace}).encode()  # fmt: skip

    def _internal(self, request: dict[str, Any], why: Exception) -> bytes:
        from celery.app.task import Context
        from kombu.utils.encoding import safe_repr

        text = "".join(traceback.format_exception(type(why), why, why.__traceback__))
        task = self.app.tasks.get(request["task"])
        backend = task.backend if task is not None else self.app.backend
        request = dict(request, args=(), kwargs={})
        backend.mark_as_failure(request["id"], why, traceback=text, request=Context(request),
                                store_result=not request.get("ignore_result"))  # fmt: skip
        return _END.pack(FAILED, 0.0) + _NOTHING + self._fault(why, safe_repr(why), text)

    def _broken(self, why: BaseException) -> bytes:
        return _END.pack(BROKEN, 0.0) + json.dumps({"why": f"{type(why).__name__}: {why}"}).encode()

    def _stopped(self, request: dict[str, Any], body: Any, content_type: str | None, content_encoding: str | None,
                 why: _task.TaskStopped) -> bytes:  # fmt: skip
        """The task has let :class:`celeriac.TaskStopped` pass, which Celery's tracer knows nothing of."""
        from billiard.exceptions import SoftTimeLimitExceeded
        from celery.app.trace import FAILURE, TraceInfo

        if why.reason != report.SOFT_TIME_LIMIT:
            # Whoever has stopped it knows what becomes of it.
            return _END.pack(STOPPED, 0.0) + why.reason.encode()
        # Who swallows exceptions has often other threads as well, which still read what a model writes.
        self._spent = True
        self.settle()
        task = self.app.tasks[request["task"]]
        context = self.context(request, body, content_type, content_encoding)
        try:
            raise SoftTimeLimitExceeded from why
        except SoftTimeLimitExceeded as limit:
            info = TraceInfo(FAILURE, limit).handle_error_state(task, context, eager=False, call_errbacks=True)
            task.after_return(FAILURE, limit, context.id, context.args, context.kwargs, info)
        report.sweep_soon()
        return self._failed(info, 0.0, request["task"])

    def context(self, request: dict[str, Any], body: Any, content_type: str | None, content_encoding: str | None) -> Any:
        """The request of a task that does not run, as one that does has it."""
        from celery.app.task import Context
        from kombu.serialization import loads, prepare_accept_content

        try:
            if content_type:
                accept = prepare_accept_content(self.app.conf.accept_content)
                body = loads(body, content_type, content_encoding, accept=accept)
            args, kwargs, embed = body
        except Exception:
            # Its caller hears of the end all the same.
            args, kwargs, embed = (), {}, {}
        request.update(embed or {}, args=args, kwargs=kwargs)
        return Context(request)

    def _conclude(self, payload: bytes) -> bytes:
        (length,) = _LENGTH.unpack_from(payload)
        at = _LENGTH.size + length
        verdict = json.loads(payload[_LENGTH.size:at])
        try:
            found = verdicts.store(self, verdict, payload[at:])
        except Exception as why:
            traceback.print_exc()
            return json.dumps({"error": f"{type(why).__name__}: {why}"}).encode()
        return json.dumps({"stored": found}).encode()

    def capture_values(self) -> None:
        """Keeps what the running task returned, for its log: the tracer itself gives only its text. Before an end is
        stored, what the task has reported is written."""
        backend = type(self.app.backend)
        done, failed = backend.mark_as_done, backend.mark_as_failure

        def mark_as_done(backend: Any, task_id: str, result: Any, request: Any = None, store_result: bool = True,
                         *args: Any, **kwargs: Any) -> Any:  # fmt: skip
            call = self.call
            if task_id == call.running:
                if store_result:
                    call.value, call.has_value = result, True
                self.settle()
            return done(backend, task_id, result, request, store_result, *args, **kwargs)

        def mark_as_failure(backend: Any, task_id: str, *args: Any, **kwargs: Any) -> Any:
            if task_id == self.call.running:
                self.settle()
            return failed(backend, task_id, *args, **kwargs)

        backend.mark_as_done, backend.mark_as_failure = mark_as_done, mark_as_failure

    def settle(self) -> None:
        """Waits until what the task has reported is written."""
        if self.reports is not None:
            self.reports.settle()


    def leave_results(self) -> None:
        """Leaves ends to the supervisor where nobody in this process can tell: it stores each with the acknowledgement
        of its message in one step, and not at all when the lease is lost."""
        backend = type(self.app.backend)
        store = backend._store_result

        def _store_result(backend: Any, task_id: str, result: Any, state: str, traceback: Any = None,
                          request: Any = None, **kwargs: Any) -> Any:  # fmt: skip
            if task_id == self.call.running and self._may_leave(state, request):
                meta = backend._get_result_meta(result=result, state=state, traceback=traceback, request=request)
                meta["task_id"] = task_id
                left = backend.encode(meta)
                left = left.encode() if isinstance(left, str) else left
                if len(left) <= _LEFT_BYTES_MAX:
                    self.call.left = left
                    return result
            return store(backend, task_id, result, state, traceback=traceback, request=request, **kwargs)

        backend._store_result = _store_result

    def _may_leave(self, state: str, request: Any) -> bool:
        if request is None or request.chord:
            return False
        if state == "SUCCESS":
            pass
        elif state != "FAILURE" or request.errbacks:
            return False
        name = request.task
        unwatched = self._unwatched.get(name)
        if unwatched is None:
            unwatched = self._unwatched[name] = _unwatched(self.app.tasks[name])
        return unwatched


def _unwatched(task: Any) -> bool:
    from celery import Task, signals

    hooks = ("on_success", "on_failure", "after_return")
    if any(getattr(type(task), hook) is not getattr(Task, hook) for hook in hooks):
        return False
    watched = (signals.task_success, signals.task_failure, signals.task_postrun)
    return not any(signal.receivers for signal in watched)


def _read(payload: bytes) -> tuple[int, str, dict[str, Any], Any]:
    """A message as it travelled: how often it was delivered, from which queue, the envelope, and the body."""
    deliveries, queue_bytes = _TASK.unpack_from(payload)
    at = _TASK.size
    queue = payload[at:at + queue_bytes].decode()
    at += queue_bytes
    (head_bytes,) = _LENGTH.unpack_from(payload, at)
    at += _LENGTH.size
    return deliveries, queue, _loads(payload[at:at + head_bytes]), payload[at + head_bytes:]


def _loads(head: bytes) -> dict[str, Any]:
    if b"__type__" in head:
        from kombu.utils.json import loads

        return loads(head)
    return json.loads(head)


def _encoded(value: Any) -> bytes:
    from kombu.utils.json import dumps

    try:
        text = dumps(value).encode()
    except Exception:
        return b""
    return text if len(text) <= _SHOWN_BYTES_MAX else b""


def _rejected(why: Any) -> bytes:
    reason = "" if why.reason is None else str(why.reason)
    return _END.pack(REJECTED, 0.0) + json.dumps({"requeue": bool(why.requeue), "reason": reason}).encode()


def run(
    worker: Worker, sock: socket.socket, number: int, place: int, parent: int, *, leaves_results: bool, pool: str
) -> None:
    """The life of a child, from the fork on; never returns."""
    code, child = 1, None
    try:
        if os.getsid(0) != os.getpid():
            os.setsid()
        system.die_with_parent(parent)
        child = Child(worker, sock)
        if pool != "prefork":
            from .crowd import Crowd

            child = Crowd(worker, sock, pool)
        _initialize(child, number, place)
        # A backend of celeriac's own hands them over by itself, and more than them.
        if leaves_results and type(child.app.backend).__module__ != "celeriac.backend":
            child.leave_results()
        code = child.serve()
        _farewell(worker, code)
    except SystemExit as why:
        code = why.code if isinstance(why.code, int) else 1
        traceback.print_exc()
    except (BrokenPipeError, ConnectionResetError):
        # The supervisor is gone, and with it whom all this is for.
        code = 1
        if child is not None:
            child.orphaned = True
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        with contextlib.suppress(Exception):
            sys.stderr.flush()
        if child is not None and child.orphaned and os.getsid(0) == os.getpid():
            # What tasks have started goes with it. The zygote may see this end before that of the supervisor, and then knows
            # of no child any more whose group it would kill.
            system.kill_group(os.getpid())
        os._exit(code)


def _initialize(child: Child, number: int, place: int) -> None:
    from billiard import process as billiard_process
    from billiard.util import _run_after_forkers
    from celery import _state, platforms, signals
    from celery.app import trace
    from celery.worker import state as worker_state

    worker, app = child.worker, child.app
    _run_after_forkers()
    for name in ("SIGTERM", "SIGQUIT", "SIGHUP", "SIGTTIN", "SIGTTOU", "SIGUSR1", "SIGCHLD"):
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    signal.signal(signal.SIGUSR1, child.soft_limit)
    _link.use(store.Supervisor(child).of_the_task)
    with contextlib.suppress(Exception):
        # The name that log lines carry, and what stands for %i in the name of a log file.
        current = billiard_process.current_process()
        current._name = f"ForkPoolWorker-{number}"
        current.index = place
        multiprocessing.current_process().name = current._name
    platforms.set_mp_process_title("celeryd", hostname=worker.hostname)
    _state._set_task_join_will_block(True)
    app.loader.init_worker_process()
    if worker.logfile and "%i" in worker.logfile.lower():
        app.log.already_setup = False
        conf = app.conf
        app.log.setup(worker.loglevel, worker.logfile, redirect_stdouts=bool(conf.worker_redirect_stdouts),
                      redirect_level=conf.worker_redirect_stdouts_level, hostname=worker.hostname)  # fmt: skip
    app.set_current()
    _state.set_default_app(app)
    app.finalize()
    trace._tasks = app._tasks
    child.capture_values()
    for name, task in app.tasks.items():
        task.__trace__ = trace.build_tracer(name, task, app.loader, worker.hostname, app=app)
    worker_state.reset_state()
    signals.worker_process_init.send(sender=worker.hostname)


def _farewell(worker: Worker, code: int) -> None:
    from celery import signals

    signals.worker_process_shutdown.send(sender=worker.hostname, pid=os.getpid(), exitcode=code)
