"""The router, in an application of its own process, with a server and a worker behind it."""

import asyncio
import contextlib
import json
import sys
import urllib.request

import pytest
from conftest import PATIENCE, free_port, until

httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")


@pytest.fixture(scope="module")
def web(shared):
    port = free_port()
    shared.start(sys.executable, "-m", "uvicorn", "web:api", "--port", port, "--log-level", "warning", PLACE_API=shared.api)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}/api", timeout=PATIENCE) as client:

        def answers():
            with contextlib.suppress(httpx.TransportError):
                return client.get("/tasks/nobody").status_code == 404

        until(answers, "the application does not come up")
        yield client


def send(web, task, *args, **more):
    answer = web.post("/tasks", json={"task": f"proj.{task}", "args": args, **more})
    assert answer.status_code == 202, answer.text
    return answer.json()


def frames(lines):
    """Frames of a stream, as they come."""
    frame = {}
    for line in lines:
        if not line:
            if "event" in frame:
                yield frame
            frame = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(": ")
            frame[name] = value


def test_a_task_is_sent_and_its_result_waited_for(web):
    sent = send(web, "add", 2, 3)
    assert sent["result"] == f"/api/tasks/{sent['id']}/result"
    answer = web.get(f"/tasks/{sent['id']}/result", params={"wait": 30})
    assert answer.status_code == 200 and answer.json()["result"] == 5
    assert web.get(f"/tasks/{sent['id']}").json()["state"] == "SUCCESS"


def test_what_cannot_be_sent_is_refused_by_name(web):
    for name in ["proj.nothing", "celery.backend_cleanup"]:
        answer = web.post("/tasks", json={"task": name})
        assert answer.status_code == 404 and name in answer.json()["detail"]
    assert web.post("/tasks", json={"task": "proj.add", "arg": []}).status_code == 422
    answer = web.post("/tasks", json={"task": "proj.add", "args": [1]})
    assert answer.status_code == 422 and "y" in answer.json()["detail"]
    assert web.get("/tasks/nobody/result").status_code == 404
    # It may still come: the revocation is kept for it.
    assert web.post("/tasks/nobody/revoke").json()["revoked"] == "noted"


def test_a_stream_passes_unbuffered_and_goes_on_where_it_was(web, tmp_path):
    mark = tmp_path / "mark"
    place = f"/tasks/{send(web, 'lone_token', str(mark))['id']}/events"
    with web.stream("GET", place) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert stream.headers["x-accel-buffering"] == "no"
        # It comes while its task waits for somebody to have seen it.
        seen = next(frame for frame in frames(stream.iter_lines()) if frame["event"] == "token")
    mark.touch()
    with web.stream("GET", place, headers={"Last-Event-ID": seen["id"]}) as stream:
        rest = list(frames(stream.iter_lines()))
    assert rest[-1]["event"] == "end" and json.loads(rest[-1]["data"])["state"] == "SUCCESS"
    assert [int(frame["id"]) for frame in rest] == list(range(int(seen["id"]) + 1, int(seen["id"]) + 1 + len(rest)))
    with web.stream("GET", place, params={"after": rest[-1]["id"]}) as stream:
        assert stream.status_code == 204


def open_streams(place):
    """How many the server of celeriac's has."""
    with urllib.request.urlopen(place.api + "/metrics", timeout=PATIENCE) as answer:
        return next(float(line.split()[1]) for line in answer.read().decode().splitlines() if line.startswith("celeriac_streams "))


def test_a_client_that_goes_away_leaves_no_stream_open_and_its_task_alone(web, shared, tmp_path):
    before, mark = open_streams(shared), tmp_path / "mark"
    sent = send(web, "lone_token", str(mark))
    with contextlib.ExitStack() as clients:
        # Forgotten, they would close their streams.
        kept = []
        for _ in range(5):
            stream = clients.enter_context(web.stream("GET", f"/tasks/{sent['id']}/events"))
            kept.append(frames(stream.iter_lines()))
            # Nothing more comes: nobody finds out by writing that there is no reader.
            next(frame for frame in kept[-1] if frame["event"] == "token")
        assert open_streams(shared) == before + 5
    until(lambda: open_streams(shared) == before, "streams of clients that are gone stay open")
    assert web.get(f"/tasks/{sent['id']}").json()["state"] == "STARTED"
    mark.touch()
    assert web.get(f"/tasks/{sent['id']}/result", params={"wait": 30}).json()["state"] == "SUCCESS"


def test_a_client_that_is_gone_before_its_stream_begins_leaves_none_open(shared, tmp_path):
    """What a server of ASGI does that is told so late that nothing was sent."""
    import fastapi

    import celeriac.fastapi

    api = fastapi.FastAPI()
    api.include_router(celeriac.fastapi.router(shared.app, server=shared.api))
    before, mark = open_streams(shared), tmp_path / "mark"
    sent = shared.proj.lone_token.delay(str(mark))
    until(lambda: any(event == "token" for event, _ in shared.log_of(sent.id)), "it does not run")
    path = f"/tasks/{sent.id}/events"
    scope = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "GET",
             "path": path, "raw_path": path.encode(), "query_string": b"", "headers": [], "scheme": "http",
             "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 1), "root_path": ""}  # fmt: skip
    told = asyncio.Event()

    async def receive():
        await told.wait()
        return {"type": "http.disconnect"}

    async def send_nothing(message):
        told.set()
        await asyncio.Event().wait()

    async def main():
        await api(scope, receive, send_nothing)
        assert told.is_set(), "it came to its answer"
        await asyncio.to_thread(until, lambda: open_streams(shared) == before, "the stream stays open")

    asyncio.run(main())
    mark.touch()
    assert sent.get(timeout=PATIENCE) is None


def test_a_task_that_runs_is_stopped(web, tmp_path):
    sent = send(web, "lone_token", str(tmp_path / "never"))
    with web.stream("GET", f"/tasks/{sent['id']}/events") as stream:
        lines = frames(stream.iter_lines())
        next(frame for frame in lines if frame["event"] == "token")
        answer = web.post(f"/tasks/{sent['id']}/revoke", json={"terminate": True})
        assert answer.status_code == 200, answer.text
        last = list(lines)[-1]
    assert last["event"] == "end" and json.loads(last["data"])["state"] == "REVOKED"


def test_a_server_that_is_away_is_said_to_be(place):
    fastapi = pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient

    import celeriac.fastapi

    api = fastapi.FastAPI()
    api.include_router(celeriac.fastapi.router(place.app, server=f"http://127.0.0.1:{free_port()}"))
    with TestClient(api) as client:
        for path in ["/tasks/x", "/tasks/x/events"]:
            answer = client.get(path)
            assert answer.status_code == 502 and "cannot be reached" in answer.json()["detail"]
