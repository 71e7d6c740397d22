"""A result backend of Celery's for ``result_backend = "celeriac+http://HOST:PORT"``: results are in the store of ``celeriac
serve``, written by ``celeriac worker`` together with the end of their task.

``get`` waits at the server, which answers when the task has ended. Groups and chords work; those of chords are counted, and
their bodies sent, by the worker. Storing results by hand needs a store of Celery's.
"""

from __future__ import annotations

import json
import time
from typing import Any

from celery import states
from celery.backends.base import BaseBackend
from celery.exceptions import TimeoutError
from celery.result import GroupResult, result_from_tuple
from kombu.utils.json import dumps

from ._link import Link, link_to

#: One wait at the server; the server has a bound of its own.
_WAIT_SECONDS = 20.0
#: One wait where somebody wants to be called meanwhile.
_INTERVAL_SECONDS = 1.0
#: Option of a chord's body, in which celeriac keeps how its header was nested.
_SHAPE = "celeriac.shape"


class Backend(BaseBackend):
    """The backend."""

    supports_autoexpire = True
    persistent = True

    def __init__(self, app: Any, url: str | None = None, **options: Any) -> None:
        super().__init__(app, url=url, **options)
        # Built with the rest of the address or with all of it, by version.
        self._address = (url or "").removeprefix("celeriac+")

    @property
    def link(self) -> Link:
        return link_to(self._address)

    def as_uri(self, include_password: bool = False) -> str:
        scheme, _, rest = self._address.partition("://")
        if not include_password and "@" in rest:
            rest = "**@" + rest.rpartition("@")[2]
        return f"celeriac+{scheme}://{rest}"

    def _get_task_meta_for(self, task_id: str) -> dict[str, Any]:
        return self._meta(task_id, 0)

    def _meta(self, task_id: str, wait: float) -> dict[str, Any]:
        found = self.link.meta(task_id, wait)
        if found is None:
            return {"status": states.PENDING, "result": None}
        return self.meta_from_decoded(found)

    def wait_for(
        self, task_id: str, timeout: float | None = None, interval: float = 0.5, no_ack: bool = True, on_interval: Any = None
    ) -> Any:
        """Waits for a task's end, at the server."""
        self._ensure_not_eager()
        deadline = None if timeout is None else time.monotonic() + timeout
        longest = _INTERVAL_SECONDS if on_interval else _WAIT_SECONDS
        while True:
            left = longest if deadline is None else max(0.0, deadline - time.monotonic())
            meta = self._meta(task_id, min(left, longest))
            if meta["status"] in states.READY_STATES:
                return meta
            if on_interval:
                on_interval()
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError("The operation timed out.")

    def _store_result(
        self, task_id: str, result: Any, state: str, traceback: str | None = None, request: Any = None, **_: Any
    ) -> Any:
        meta = self._get_result_meta(result=result, state=state, traceback=traceback, request=request)
        meta["task_id"] = task_id
        self.link.store(json.loads(dumps(meta)))
        return result

    def _forget(self, task_id: str) -> None:
        self.link.forget(task_id)

    def _save_group(self, group_id: str, result: Any) -> Any:
        self.link.save_group(group_id, json.loads(dumps(result.as_tuple())))
        return result

    def _restore_group(self, group_id: str) -> dict[str, Any] | None:
        found = self.link.group(group_id)
        return None if found is None else {"result": result_from_tuple(found, self.app)}

    def _delete_group(self, group_id: str) -> None:
        self.link.delete_group(group_id)

    def apply_chord(self, header_result_args: Any, body: Any, **_: Any) -> None:
        """Opens a chord, before its header is sent."""
        self.ensure_chords_allowed()
        group_id, results = header_result_args[0], list(header_result_args[1])
        signature = json.loads(dumps(dict(body)))
        if any(isinstance(result, GroupResult) for result in results):
            signature["options"] = {**signature.get("options", {}), _SHAPE: [_shape(result) for result in results]}
        chord = {"group": group_id, "size": sum(map(_ends, results)), "body": signature}
        self.link.publish([], [chord])

    def set_chord_size(self, group_id: str, chord_size: int) -> None:
        """It was told when the chord was opened."""

    def on_chord_part_return(self, request: Any, state: str, result: Any, **_: Any) -> None:
        """Counts an end for its chord."""
        if not request.group:
            return
        if isinstance(result, BaseException):
            result = self.prepare_exception(result, "json")
        part = {"group": request.group, "task": request.id, "state": state, "result": result}
        index = getattr(request, "group_index", None)
        if index is not None:
            part["index"] = index
        self.link.part(json.loads(dumps(part)))

    def __reduce__(self, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        return super().__reduce__(args, {**(kwargs or {}), "url": self.url})


def _ends(result: Any) -> int:
    return sum(map(_ends, result.results)) if isinstance(result, GroupResult) else 1


def _shape(result: Any) -> Any:
    return [_shape(member) for member in result.results] if isinstance(result, GroupResult) else result.id
