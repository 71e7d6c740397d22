"""Error callbacks of the newer style, for tasks that failed elsewhere.

Celery calls a ``link_error`` that takes ``(request, exc, traceback)`` in the process in which the task failed, and sends any
other as a task that gets the failed task's id. A task in Rust has no such process: its errbacks are all sent. Here one of the
newer style gets what it would have got, from the failed task's result.
"""

from __future__ import annotations

from typing import Any


def called(app: Any, request: dict[str, Any], body: Any, content_type: str | None, content_encoding: str | None) -> Any:
    """The body to run in place of one that is an errback's; ``None`` for any other."""
    from celery.utils.functional import arity_greater
    from kombu.serialization import loads, prepare_accept_content

    failed_id = request.get("parent_id")
    task = app.tasks.get(request["task"])
    header = getattr(task, "__header__", None)
    # As celery/backends/base.py, `_call_task_errbacks`.
    if not failed_id or content_type is None or header is None or not arity_greater(header, 1):
        return None
    # Most are ordinary steps of a chain, and are not read twice for this.
    if isinstance(body, bytes) and failed_id.encode() not in body:
        return None
    args, kwargs, embed = loads(body, content_type, content_encoding, accept=prepare_accept_content(app.conf.accept_content))
    if list(args) != [failed_id]:
        return None
    meta = app.backend.get_task_meta(failed_id)
    if meta.get("status") != "FAILURE" or not isinstance(meta.get("result"), BaseException):
        return None
    failed = _request(failed_id, request, meta)
    # What it gets is not for storing, and there it leaves no result of its own either.
    request["ignore_result"] = True
    return (failed, meta["result"], meta.get("traceback")), kwargs, embed


def _request(failed_id: str, request: dict[str, Any], meta: dict[str, Any]) -> Any:
    from celery.app.task import Context

    return Context(
        id=failed_id,
        root_id=request.get("root_id"),
        task=meta.get("name"),
        args=meta.get("args") or (),
        kwargs=meta.get("kwargs") or {},
        retries=meta.get("retries") or 0,
        hostname=meta.get("worker"),
        group=meta.get("group_id"),
        parent_id=meta.get("parent_id"),
        errbacks=None,
        callbacks=None,
        chord=None,
    )
