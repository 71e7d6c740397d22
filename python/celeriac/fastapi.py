"""Submit, status, result, stream and revoke for a Celery application, as routes of a FastAPI application.

>>> from fastapi import FastAPI                                                 # doctest: +SKIP
>>> import celeriac.fastapi                                                     # doctest: +SKIP
>>> api = FastAPI()                                                             # doctest: +SKIP
>>> api.include_router(celeriac.fastapi.router(celery_app), prefix="/api")      # doctest: +SKIP

Tasks are sent by Celery itself, to whatever broker the application has. What became of them is read from ``celeriac serve``
on the same store, at ``server``: states, results, and streams, which are passed through as they come. Who may call is the
application's own affair: give ``dependencies=[Depends(…)]``.

=================================  =================================================================================
``POST /tasks``                    ``{"task", "args", "kwargs", "queue", "countdown", "eta", "expires", "priority",
                                   "task_id"}`` → 202 and where to look
``GET /tasks/{id}``                the task: state, progress, attempts, why it waits
``GET /tasks/{id}/result?wait=``   its value or error; 202 while there is none
``GET /tasks/{id}/events``         Server-Sent Events; a reconnecting ``EventSource`` goes on where it was
``POST /tasks/{id}/revoke``        ``{"terminate": true}`` stops it; closing a stream does not
=================================  =================================================================================

Needs the packages ``fastapi`` and ``httpx``: ``pip install celeriac[fastapi]``.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import AsyncIterator, Collection
from typing import Any
from urllib.parse import quote

import anyio
import httpx
from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.types import Receive, Scope, Send

SERVER = "http://127.0.0.1:8787"
#: A wait for a result is the server's to end; this is for a server that does not answer at all.
_TIMEOUT = httpx.Timeout(10, read=75)
#: A stream has a comment every 15 s.
_STREAM_TIMEOUT = httpx.Timeout(10, read=60)
#: What a client tells of where it was, and what it wants to read.
_ASKED = ("accept", "last-event-id")
_ANSWERED = ("content-type", "cache-control", "x-accel-buffering", "retry-after")


class Submission(BaseModel):
    """A call of a task."""

    model_config = ConfigDict(extra="forbid")

    task: str = Field(description="The task's name", min_length=1)
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    queue: str | None = None
    countdown: float | None = Field(default=None, ge=0, description="Seconds to wait before it runs")
    eta: datetime.datetime | None = Field(default=None, description="Not before this time")
    expires: float | None = Field(default=None, ge=0, description="Seconds after which it is not run any more")
    priority: int | None = Field(default=None, ge=0, le=9)
    task_id: str | None = Field(default=None, min_length=1, max_length=255)


class Submitted(BaseModel):
    """A task that was sent."""

    id: str
    task: str
    status: str
    result: str
    events: str


class Revocation(BaseModel):
    """How a task is to be stopped."""

    model_config = ConfigDict(extra="forbid")

    terminate: bool = Field(default=False, description="Stop it even if it runs")


def router(
    app: Any, *, server: str | None = None, token: str | None = None, tasks: Collection[str] | None = None, **options: Any
) -> APIRouter:
    """The routes, for the Celery application ``app``.

    ``server`` is the address of ``celeriac serve`` (else ``CELERIAC_SERVER``, else port 8787 here), ``token`` what it asks for
    (else ``CELERIAC_TOKEN``). ``tasks`` are the names that may be sent: those that the application has registered, if none are
    given. The rest goes to :class:`fastapi.APIRouter`.
    """
    upstream = _Upstream(server or os.environ.get("CELERIAC_SERVER") or SERVER, token or os.environ.get("CELERIAC_TOKEN"))
    options.setdefault("tags", ["tasks"])
    routes = APIRouter(lifespan=upstream.lifespan, **options)

    def allowed() -> set[str]:
        if tasks is not None:
            return set(tasks)
        return {name for name in app.tasks if not name.startswith("celery.")}

    @routes.post("/tasks", status_code=202)
    async def submit(call: Submission, request: Request) -> Submitted:
        """Send a task"""
        if call.task not in allowed():
            raise HTTPException(404, f"there is no task {call.task!r}; see the field `tasks` of the router for those that may be sent")
        fields = call.model_dump(exclude={"task", "args", "kwargs"}, exclude_none=True)
        # By its signature, so that what the task says of itself holds; by name where only workers know it.
        task = app.tasks.get(call.task)
        signature = task.signature(call.args, call.kwargs) if task is not None else app.signature(
            call.task, args=call.args, kwargs=call.kwargs)  # fmt: skip
        try:
            sent = await run_in_threadpool(signature.apply_async, **fields)
        except TypeError as why:
            raise HTTPException(422, str(why)) from why
        except app.connection_for_write().connection_errors as why:
            raise HTTPException(503, f"the broker cannot be reached: {why}") from why
        place = str(request.url_for("celeriac_task", task_id=sent.id).path)
        return Submitted(id=sent.id, task=call.task, status=place, result=f"{place}/result", events=f"{place}/events")

    @routes.get("/tasks/{task_id}", name="celeriac_task")
    async def status(task_id: str) -> Response:
        """See a task"""
        return await upstream.ask("GET", task_id)

    @routes.get("/tasks/{task_id}/result")
    async def result(task_id: str, wait: float = Query(0, ge=0, le=60, description="Seconds to wait for it")) -> Response:
        """Get a task's result"""
        return await upstream.ask("GET", task_id, "/result", params={"wait": wait} if wait else None)

    @routes.get("/tasks/{task_id}/events")
    async def events(task_id: str, request: Request) -> Response:
        """Follow a task"""
        return await upstream.stream(task_id, request)

    @routes.post("/tasks/{task_id}/revoke")
    async def revoke(task_id: str, how: Revocation | None = None) -> Response:
        """Stop a task"""
        return await upstream.ask("POST", task_id, "/revoke", json=(how or Revocation()).model_dump())

    return routes


class _Upstream:
    """The server that is asked."""

    def __init__(self, server: str, token: str | None) -> None:
        self._server = server.rstrip("/") + "/api/v1/tasks/"
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._client: httpx.AsyncClient | None = None

    @contextlib.asynccontextmanager
    async def lifespan(self, _: Any) -> AsyncIterator[None]:
        """Keeps connections for as long as the application lives."""
        try:
            yield
        finally:
            if self._client is not None:
                await self._client.aclose()
                self._client = None

    def client(self) -> httpx.AsyncClient:
        if self._client is None:
            # As many streams as there are clients: each holds a connection.
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
            self._client = httpx.AsyncClient(headers=self._headers, timeout=_TIMEOUT, limits=limits)
        return self._client

    def url(self, task_id: str, rest: str = "") -> str:
        return self._server + quote(task_id, safe="") + rest

    async def ask(self, method: str, task_id: str, rest: str = "", **more: Any) -> Response:
        """Asks, and answers with what was answered."""
        try:
            answer = await self.client().request(method, self.url(task_id, rest), **more)
        except httpx.TransportError as why:
            return self._away(why)
        return Response(answer.content, answer.status_code, _kept(answer))

    async def stream(self, task_id: str, request: Request) -> Response:
        """Passes a stream through, chunk by chunk."""
        asked = {name: request.headers[name] for name in _ASKED if name in request.headers}
        asked.setdefault("accept", "text/event-stream")
        client = self.client()
        outgoing = client.build_request("GET", self.url(task_id, "/events"), headers=asked, timeout=_STREAM_TIMEOUT,
                                        params=request.query_params)  # fmt: skip
        try:
            answer = await client.send(outgoing, stream=True)
        except httpx.TransportError as why:
            return self._away(why)

        async def chunks() -> AsyncIterator[bytes]:
            # Cut off half-way, by either side, the stream ends: who wants more comes again and says where it was.
            with contextlib.suppress(httpx.TransportError):
                async for chunk in answer.aiter_raw():
                    yield chunk

        return _Passed(answer, chunks())

    def _away(self, why: Exception) -> Response:
        detail = f"celeriac serve cannot be reached at {self._server}: {why or type(why).__name__}"
        problem = {"type": "about:blank", "title": "no answer", "status": 502, "detail": detail}
        return JSONResponse(problem, 502, media_type="application/problem+json")


class _Passed(StreamingResponse):
    """A stream from the server, which is closed there whatever becomes of it here: a client may be gone before the first
    chunk is asked for, and then nothing in the stream itself would ever run."""

    def __init__(self, answer: httpx.Response, chunks: AsyncIterator[bytes]) -> None:
        super().__init__(chunks, answer.status_code, _kept(answer))
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            with anyio.CancelScope(shield=True):
                await self._answer.aclose()


def _kept(answer: httpx.Response) -> dict[str, str]:
    return {name: answer.headers[name] for name in _ANSWERED if name in answer.headers}
