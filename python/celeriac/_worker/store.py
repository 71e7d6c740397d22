"""The store of a worker whose application has none that Python can reach: SQLite, in a file that the supervisor alone opens.

Publishes, states and results go over the child's socket. What belongs to the end of the running task, its result, its part
of a chord and its next life under the same id, is written in one step with its acknowledgement.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from celery import states
from kombu.utils.json import dumps

from .. import _link
from . import report, wire

if TYPE_CHECKING:
    from .child import Child

#: What an address that Python cannot follow is replaced by.
ADDRESS = "celeriac+" + _link.WORKER
_OURS = ("celeriac+", "sqlite:", "memory:")
_NOW, _LATE = b"\0", b"\1"


def lead_home(app: Any) -> str | None:
    """Has the application publish and store through its supervisor, where its addresses lead to a store of celeriac's; then
    returns the one that the application itself has."""
    from celery.app import backends

    from .. import _kombu  # noqa: F401  (registers the transport)

    backends.BACKEND_ALIASES.setdefault("celeriac", "celeriac.backend:Backend")
    conf = app.conf
    given, kept = conf.broker_url, conf.result_backend
    own = next((value for name in ("broker_url", "broker_write_url") if isinstance(value := conf.first(name), str)), given)
    if not _is_ours(given):
        return None
    os.environ["CELERY_BROKER_URL"] = ADDRESS
    os.environ.pop("CELERY_BROKER_READ_URL", None)
    os.environ.pop("CELERY_BROKER_WRITE_URL", None)
    # A backend of the application's own stays: results that it keeps elsewhere are its affair.
    if kept is None or _is_ours(kept) or kept == own:
        os.environ["CELERY_RESULT_BACKEND"] = ADDRESS
    # Outside of tasks, as in handlers of signals, the application goes where it would go anyway. A process that is spawned
    # may find only this.
    if isinstance(own, str) and own.startswith(("celeriac+http:", "celeriac+https:")):
        os.environ[_link.OUTSIDE] = own.removeprefix("celeriac+")
    elif own != ADDRESS:
        # What a task has started may be a worker of another application.
        os.environ.pop(_link.OUTSIDE, None)
    return own


def _is_ours(url: Any) -> bool:
    return isinstance(url, str) and url.startswith(_OURS)


class Supervisor:
    """The link over a child's socket, for the task that runs."""

    def __init__(self, child: Child) -> None:
        self._child = child

    def of_the_task(self) -> _link.Link | None:
        """This, while a task runs."""
        return None if self._running() is None else self

    def publish(self, messages: list[dict[str, Any]], chords: list[dict[str, Any]]) -> None:
        self._hand_over(_link.handed(messages, chords), _NOW)

    def meta(self, task_id: str, wait: float) -> dict[str, Any] | None:
        return json.loads(self._ask(wire.FETCH, dumps([task_id]).encode()))[0]

    def store(self, meta: dict[str, Any]) -> None:
        ends = meta["task_id"] == self._call().task_id and meta["status"] in states.READY_STATES
        self._hand_over({"results": [meta]}, _LATE if ends else _NOW)

    def part(self, part: dict[str, Any]) -> None:
        self._hand_over({"parts": [part]}, _LATE if part["task"] == self._call().task_id else _NOW)

    def revoke(self, ids: list[str], arguments: dict[str, Any]) -> None:
        self._order("revoke", ids=ids, **_link.how_to_stop(arguments))

    def forget(self, task_id: str) -> None:
        self._order("forget", ids=[task_id])

    def save_group(self, group_id: str, result: Any) -> None:
        self._order("save_group", id=group_id, result=result)

    def group(self, group_id: str) -> Any:
        return self._order("group", id=group_id)

    def delete_group(self, group_id: str) -> None:
        self._order("delete_group", id=group_id)

    def _order(self, what: str, **how: Any) -> Any:
        return json.loads(self._ask(wire.ORDER, dumps({what: how}).encode()))

    def _hand_over(self, what: dict[str, Any], when: bytes) -> None:
        self._ask(wire.STORE, when + dumps(what).encode())

    def _running(self) -> report.Call | None:
        call = self._child.reports
        return None if call is None or call.over else call

    def _call(self) -> report.Call:
        call = self._running()
        if call is None:
            raise _link.no_way()
        return call

    def _ask(self, kind: int, payload: bytes) -> bytes:
        call = self._call()
        status, data = call.reporter.ask(kind, call, payload)
        if status == report.STOPPED:
            call.stop(data.decode() or "lease_lost")
            raise _link.Unavailable("the task may not write any more: its lease is lost")
        if status == report.FAILED:
            raise _link.Refused(data.decode())
        return data
