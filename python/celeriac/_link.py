"""The ways of Celery's producers to celeriac's store: through a server, or through the supervisor of a worker."""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import threading
from collections.abc import Callable
from typing import Any, Protocol
from urllib.parse import quote, unquote, urlsplit

from kombu.utils.json import dumps

#: Address of the link through the supervisor, for processes of a worker.
WORKER = "worker://"


class Unavailable(ConnectionError):
    """The store cannot be reached now; trying again later is right."""


class Refused(Exception):
    """What was asked is wrong; trying again changes nothing."""


class Link(Protocol):
    """A way to the store."""

    def publish(self, messages: list[dict[str, Any]], chords: list[dict[str, Any]]) -> None:
        """Publishes messages as they are, and opens chords."""

    def meta(self, task_id: str, wait: float) -> dict[str, Any] | None:
        """What is stored of a task; waits for its end."""

    def store(self, meta: dict[str, Any]) -> None:
        """Stores a state or result."""

    def part(self, part: dict[str, Any]) -> None:
        """Counts an end for its chord."""

    def revoke(self, ids: list[str], arguments: dict[str, Any]) -> None:
        """Revokes tasks."""

    def forget(self, task_id: str) -> None:
        """Forgets a task, once it is finished."""

    def save_group(self, group_id: str, result: Any) -> None:
        """Keeps a group under its id, in its tuple form."""

    def group(self, group_id: str) -> Any:
        """The tuple form of a group that was kept."""

    def delete_group(self, group_id: str) -> None:
        """Forgets a group that was kept, and of its members nothing."""


#: In the processes of a worker, the variable with the address of a server that the application itself has.
OUTSIDE = "CELERIAC_OWN_SERVER"

#: Set in the processes of a worker that run tasks: the link of the task that runs, if one does.
_of_the_task: Callable[[], Link | None] | None = None
#: Those of this process, by their addresses.
_servers: dict[str, Server] = {}
_servers_of = 0


def no_way() -> Refused:
    """Why nothing reaches the store from a worker's process that runs no task."""
    return Refused("nothing can be sent or stored here: only while a task runs is there a way to the store")


def use(of_the_task: Callable[[], Link | None]) -> None:
    """This process is one of a worker: whatever address of a server a task is given, its supervisor is nearer."""
    global _of_the_task
    _of_the_task = of_the_task


def link_to(url: str) -> Link:
    """The link for an address, as it stands behind ``celeriac+``. Ask each time: with a task it is another than without."""
    if _of_the_task is not None and (link := _of_the_task()) is not None:
        return link
    if url.startswith(WORKER):
        url = os.environ.get(OUTSIDE, "")
        if not url:
            raise no_way()
    global _servers_of
    if _servers_of != os.getpid():
        # A connection that is kept is not shared with the process that this one was forked from.
        _servers.clear()
        _servers_of = os.getpid()
    return _servers.get(url) or _servers.setdefault(url, Server(url))


class Server:
    """Through ``celeriac serve``: ``http://[:TOKEN@]HOST[:PORT]``."""

    def __init__(self, url: str, timeout: float = 30) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Refused(f"celeriac+{url} is no address of a server; celeriac+http://HOST:PORT is")
        self._secure = parts.scheme == "https"
        self._host, self._port = parts.hostname, parts.port or (443 if self._secure else 8787)
        self._prefix = parts.path.rstrip("/") + "/api/v1"
        self._headers = {"Accept": "application/json"}
        token = unquote(parts.password or parts.username or "")
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._timeout = timeout
        self._local = threading.local()

    def publish(self, messages: list[dict[str, Any]], chords: list[dict[str, Any]]) -> None:
        self._ask("POST", "/messages", handed(messages, chords))

    def meta(self, task_id: str, wait: float) -> dict[str, Any] | None:
        query = f"?wait={wait:.3f}" if wait > 0 else ""
        found = self._ask("GET", f"/tasks/{quote(task_id, safe='')}/meta{query}", wait=wait)
        return found["meta"]

    def store(self, meta: dict[str, Any]) -> None:
        raise Refused("results are stored by the worker that runs their task: `celeriac worker -A …`, and no other")

    def part(self, part: dict[str, Any]) -> None:
        raise Refused("ends of chords are counted by the worker that runs their tasks: `celeriac worker -A …`")

    def revoke(self, ids: list[str], arguments: dict[str, Any]) -> None:
        self._ask("POST", "/tasks/revoke", {"ids": ids, **how_to_stop(arguments)})

    def forget(self, task_id: str) -> None:
        self._ask("DELETE", f"/tasks/{quote(task_id, safe='')}/meta")

    def save_group(self, group_id: str, result: Any) -> None:
        self._ask("PUT", f"/groups/{quote(group_id, safe='')}", {"result": result})

    def group(self, group_id: str) -> Any:
        return self._ask("GET", f"/groups/{quote(group_id, safe='')}")["result"]

    def delete_group(self, group_id: str) -> None:
        self._ask("DELETE", f"/groups/{quote(group_id, safe='')}")

    def _ask(self, method: str, path: str, body: Any = None, wait: float = 0) -> Any:
        headers = dict(self._headers)
        data = None
        if body is not None:
            data = dumps(body).encode()
            headers["Content-Type"] = "application/json"
        kept = getattr(self._local, "connection", None)
        try:
            return self._once(kept or self._connect(), method, path, data, headers, wait)
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError) as why:
            # A connection that was kept may have been closed since. Asked again on a new one, at most once: a message
            # that the server has taken all the same is not sent twice while its task waits or runs.
            if kept is None:
                raise self._away(why) from why
        except (OSError, http.client.HTTPException) as why:
            raise self._away(why) from why
        try:
            return self._once(self._connect(), method, path, data, headers, wait)
        except (OSError, http.client.HTTPException) as why:
            raise self._away(why) from why

    def _connect(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        return kind(self._host, self._port, timeout=self._timeout)

    def _once(
        self, connection: http.client.HTTPConnection, method: str, path: str, data: bytes | None, headers: dict[str, str],
        wait: float,
    ) -> Any:  # fmt: skip
        self._local.connection = None
        if connection.sock is not None:
            connection.sock.settimeout(self._timeout + wait)
        else:
            connection.timeout = self._timeout + wait
        connection.request(method, self._prefix + path, data, headers)
        answer = connection.getresponse()
        found = answer.read()
        if not answer.will_close:
            self._local.connection = connection
        if answer.status < 300:
            return json.loads(found or b"null")
        detail = _detail(found) or answer.reason
        text = f"{method} {self._prefix}{path.partition('?')[0]} on {self._host}:{self._port}: {answer.status}, {detail}"
        raise Unavailable(text) if answer.status in (408, 429, 500, 502, 503, 504) else Refused(text)

    def _away(self, why: Exception) -> Unavailable:
        scheme = "https" if self._secure else "http"
        text = f"celeriac's server cannot be reached at {scheme}://{self._host}:{self._port}: {why or type(why).__name__}"
        return Unavailable(f"{text}; start it with `celeriac serve`")


def how_to_stop(arguments: dict[str, Any]) -> dict[str, Any]:
    """What a command of Celery's to revoke says of what runs."""
    if not arguments.get("terminate"):
        return {"terminate": False}
    name = arguments.get("signal") or "SIGTERM"
    if isinstance(name, int):
        name = signal.Signals(name).name
    # Celery takes a name without its beginning, too.
    name = name.upper().removeprefix("SIG")
    # What is usual goes without saying, which a server of an earlier release understands as well.
    return {"terminate": True} if name == "TERM" else {"terminate": True, "signal": f"SIG{name}"}


def handed(messages: list[dict[str, Any]], chords: list[dict[str, Any]]) -> dict[str, Any]:
    """What is handed over, without what there is none of."""
    return {name: items for name, items in (("messages", messages), ("chords", chords)) if items}


def _detail(answer: bytes) -> str:
    try:
        problem = json.loads(answer)
        wrong = "; ".join(f"{error['at']}: {error['problem']}" for error in problem.get("errors", ()))
        return wrong or problem.get("detail", "")
    except (ValueError, AttributeError, KeyError, TypeError):
        return ""


def body_of(message: dict[str, Any]) -> Any:
    """The body of a message that kombu has made, where that is JSON."""
    body = message["body"]
    if message.get("properties", {}).get("body_encoding") == "base64":
        body = base64.b64decode(body)
    return json.loads(body)
