"""Ends that nobody ran to: the supervisor has seen them, and the application's own backend stores them, with all that
follows. As ``celery/worker/request.py`` and ``celery/worker/consumer/consumer.py`` do in Celery's main process.
"""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .child import Child


def store(child: Child, verdict: dict[str, Any], payload: bytes) -> str:
    """Stores an end that nobody ran to, with all that follows it, and says what stands stored."""
    from celery.exceptions import Reject, TimeLimitExceeded, WorkerLostError

    request, body, content_type, content_encoding = child.request(payload)
    context = child.context(request, body, content_type, content_encoding)
    kind = verdict["verdict"]
    if kind == "not_registered":
        return _not_registered(child, context, payload)
    task = child.app.tasks[request["task"]]
    backend, uuid = task.backend, request["id"]
    ignored = request.get("ignore_result")
    ignored = task.ignore_result if ignored is None else ignored
    # As Celery's `Request.store_errors`.
    store = not ignored or bool(task.store_errors_even_if_ignored)
    if kind == "revoked":
        return _revoke(task, uuid, context, verdict["text"], verdict.get("signal"), store)
    if not ignored and _succeeded_before(backend, uuid):
        # It was lost between the result and what counts it.
        if context.chord:
            backend.on_chord_part_return(context, "SUCCESS", backend.get_result(uuid))
        return "SUCCESS"
    exception = {
        "time_limit": lambda: TimeLimitExceeded(verdict["seconds"]),
        "lost": lambda: WorkerLostError(verdict["text"]),
        "rejected": lambda: Reject(verdict["text"], requeue=False),
    }[kind]()
    if kind == "lost" and _retry_lost(task, uuid, context, exception, store):
        return "RETRY"
    backend.mark_as_failure(uuid, exception, request=context, store_result=store)
    _tell_failure(task, uuid, context, exception, hooks=kind == "time_limit")
    return "FAILURE"


def _not_registered(child: Child, context: Any, payload: bytes) -> str:
    """As Celery's ``Consumer.on_unknown_task``; those who wait for the task's part of a chord, or for its end by an
    errback, hear of it too."""
    from celery import signals
    from celery.exceptions import NotRegistered

    name, uuid = context.task, context.id
    child.app.backend.mark_as_failure(uuid, NotRegistered(name), request=context)
    if signals.task_unknown.receivers:
        message = child.message(payload)
        signals.task_unknown.send(sender=child.worker, message=message, exc=KeyError(name), name=name, id=uuid)
    return "FAILURE"


def _revoke(task: Any, uuid: str, context: Any, why: str, signum: int | None, store: bool) -> str:
    from celery import signals

    task.backend.mark_as_revoked(uuid, why, request=context, store_result=store)
    signals.task_revoked.send(
        sender=task,
        request=context,
        terminated=why == "terminated",
        signum=signum,
        expired=why == "expired",
    )
    return "REVOKED"


def _retry_lost(task: Any, uuid: str, context: Any, exception: Exception, store: bool) -> bool:
    """As Celery's `Request._retry_worker_lost`."""
    from celery import signals
    from celery.exceptions import Retry

    if not getattr(task, "retry_on_worker_lost", False):
        return False
    if task.max_retries is not None and context.retries >= task.max_retries:
        return False
    countdown = task.default_retry_delay
    task.signature_from_request(context, countdown=countdown, retries=context.retries + 1).apply_async()
    info = _info(exception)
    if store:
        task.backend.mark_as_retry(uuid, exception, info.traceback, request=context)
    task.request_stack.push(context)
    try:
        task.on_retry(exception, uuid, context.args, context.kwargs, info)
        reason = Retry(exc=exception, when=countdown)
        signals.task_retry.send(sender=task, request=context, reason=reason, einfo=info)
    finally:
        task.request_stack.pop()
    return True


def _tell_failure(task: Any, uuid: str, context: Any, exception: Exception, hooks: bool) -> None:
    from celery import signals

    info = _info(exception)
    args, kwargs = context.args, context.kwargs
    task.request_stack.push(context)
    try:
        if hooks:
            task.on_failure(exception, uuid, args, kwargs, info)
            task.after_return("FAILURE", exception, uuid, args, kwargs, None)
        signals.task_failure.send(
            sender=task, task_id=uuid, exception=exception, args=args, kwargs=kwargs, traceback=None, einfo=info
        )
    except Exception:
        # The end is stored; a hook that fails changes nothing of it.
        traceback.print_exc()
    finally:
        task.request_stack.pop()


def _info(exception: Exception) -> Any:
    from billiard.einfo import ExceptionInfo

    try:
        raise exception
    except Exception:
        return ExceptionInfo()


def _succeeded_before(backend: Any, uuid: str) -> bool:
    # Asking such a backend would wait for a message.
    if type(backend).__module__ == "celery.backends.rpc":
        return False
    try:
        return backend.get_task_meta(uuid, cache=False).get("status") == "SUCCESS"
    except NotImplementedError:
        return False
