"""A transport of kombu's for ``broker_url = "celeriac+http://HOST:PORT"``: messages go to ``celeriac serve``, as kombu made
them, and from there to its store.

It sends only. Tasks are consumed by ``celeriac worker -A proj``, which has the store itself; ``celery worker`` is refused. Of
remote control it carries ``revoke``; the rest is asked of the server, by ``celeriac inspect`` and ``celeriac control``.
"""

from __future__ import annotations

from typing import Any

from kombu.transport import virtual

from . import _kombu  # noqa: F401  (kombu is told even where the package is not installed)
from ._link import Link, Refused, Unavailable, body_of, link_to

_CONSUMES = ("`celery worker` cannot consume over celeriac+http://. Run `celeriac worker -A …` with the same application, on the "
             "store that the server has")  # fmt: skip


class Channel(virtual.Channel):
    """What a producer sends by."""

    supports_fanout = True
    do_restore = False

    @property
    def link(self) -> Link:
        return self.connection.link

    def _put(self, queue: str, message: dict[str, Any], **_: Any) -> None:
        self.link.publish([{"queue": queue, "message": message}], [])

    def _put_fanout(self, exchange: str, message: dict[str, Any], routing_key: str, **_: Any) -> None:
        if not exchange.endswith("pidbox"):
            # Events: the server makes its own of what happens in the store.
            return
        command = body_of(message)
        if command.get("method") != "revoke":
            raise NotImplementedError(f"remote control {command.get('method')!r} is not carried over celeriac+http://; use "
                                      "`celeriac inspect` and `celeriac control`")  # fmt: skip
        arguments = command.get("arguments") or {}
        ids = arguments.get("task_id")
        self.link.revoke([ids] if isinstance(ids, str) else list(ids or ()), arguments)

    def _queue_bind(self, *_: Any) -> None:
        """What is bound to what is each client's own to know."""

    def _get(self, queue: str, timeout: float | None = None) -> Any:
        raise NotImplementedError(_CONSUMES)

    def basic_consume(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError(_CONSUMES)

    def basic_get(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError(_CONSUMES)

    def _has_queue(self, queue: str, **_: Any) -> bool:
        return True

    def _size(self, queue: str) -> int:
        return 0

    def _purge(self, queue: str) -> int:
        raise NotImplementedError(f"queue {queue} cannot be purged over celeriac+http://; use `celeriac purge`")


class Transport(virtual.Transport):
    """The transport."""

    Channel = Channel
    can_parse_url = True
    default_port = 8787  # type: ignore[assignment]
    driver_type = "celeriac"
    driver_name = "celeriac"
    connection_errors = (*virtual.Transport.connection_errors, Unavailable, OSError)  # type: ignore[assignment]
    channel_errors = (*virtual.Transport.channel_errors,)
    # Each client declares for itself what it sends to.
    implements = virtual.Transport.implements.extend(asynchronous=False, exchange_type=frozenset(["direct", "topic", "fanout"]))

    @property
    def link(self) -> Link:
        return link_to((self.client and self.client.hostname) or "")

    def driver_version(self) -> str:
        from . import __version__

        return __version__

    def drain_events(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError(_CONSUMES)


__all__ = ["Channel", "Refused", "Transport", "Unavailable"]
