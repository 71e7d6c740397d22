"""The example as its users run it: real crew, real worker, real browser streams, a model that counts what it is asked.

Needs the packages of requirements.txt, redis-server, and CELERIAC_BINARY, the program under test.
"""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest

HERE = pathlib.Path(__file__).parent
BINARY = os.environ.get("CELERIAC_BINARY", "celeriac")
PATIENCE = 90


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(what, condition, patience=PATIENCE):
    deadline = time.monotonic() + patience
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {patience} s"
        time.sleep(0.02)
    return found


class Newsroom:
    """All of its processes, on ports of their own."""

    def __init__(self, folder):
        self.folder, self.started = folder, []
        redis, server, llm, web = (free_port() for _ in range(4))
        self.web, self.llm = f"http://127.0.0.1:{web}", f"http://127.0.0.1:{llm}"
        url = f"redis://127.0.0.1:{redis}/0"
        self.environment = {
            **os.environ,
            "CELERY_BROKER_URL": url,
            "CELERIAC_SERVER": f"http://127.0.0.1:{server}",
            "OPENAI_BASE_URL": f"{self.llm}/v1",
            "LLM_TOKENS_PER_SECOND": "25",
            "CREWAI_DISABLE_TELEMETRY": "true",
            "OTEL_SDK_DISABLED": "true",
            "CREWAI_TRACING_ENABLED": "false",
            "CREWAI_STORAGE_DIR": str(folder / "crewai"),
            "CELERIAC_PYTHON": sys.executable,
            "PYTHONPATH": os.pathsep.join([str(HERE.parent.parent / "python"), os.environ.get("PYTHONPATH", "")]),
        }
        self.start("redis-server", "--port", str(redis), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder))
        self.start(sys.executable, "-m", "uvicorn", "llm:api", "--port", str(llm), "--log-level", "warning")
        self.start(sys.executable, "-m", "uvicorn", "main:api", "--port", str(web), "--log-level", "warning")
        self.start(BINARY, "-b", url, "serve", "--bind", f"127.0.0.1:{server}", "--roles", "web", "--accept-unknown-tasks")
        until("the web application answers", lambda: answers(f"{self.web}/"))
        until("the model answers", lambda: answers(f"{self.llm}/calls"))
        until("the server answers", lambda: answers(f"http://127.0.0.1:{server}/readyz"))
        self.worker = self.start_worker()

    def start(self, *command):
        log = open(self.folder / f"{len(self.started)}.log", "wb")
        process = subprocess.Popen(command, cwd=HERE, env=self.environment, stdout=log, stderr=log)
        self.started.append(process)
        return process

    def start_worker(self):
        return self.start(BINARY, "worker", "-A", "newsroom_app", "-c", "1", "-l", "INFO")

    def submit(self, topic):
        answer = httpx.post(f"{self.web}/tasks", json={"task": "newsroom.article", "args": [topic]}, timeout=PATIENCE)
        answer.raise_for_status()
        task_id = answer.json()["id"]
        until("the server has heard of it", lambda: httpx.get(f"{self.web}/tasks/{task_id}").status_code == 200)
        return task_id

    def calls(self):
        return httpx.get(f"{self.llm}/calls", timeout=PATIENCE).json()

    def follow(self, task_id, after=None):
        """The frames of the stream, as (id, event, data)."""
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": str(after)} if after else {})
        with httpx.stream("GET", f"{self.web}/tasks/{task_id}/events", headers=headers, timeout=PATIENCE) as answer:
            answer.raise_for_status()
            frame = {}
            for line in answer.iter_lines():
                name, _, value = line.partition(": ")
                if line == "":
                    if "event" in frame:
                        yield int(frame["id"]), frame["event"], json.loads(frame["data"])
                        if frame["event"] == "end":
                            return
                    frame = {}
                elif name:
                    frame[name] = value

    def stop(self):
        for process in reversed(self.started):
            process.terminate()
        for process in self.started:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def answers(url):
    try:
        return httpx.get(url, timeout=5).status_code < 500
    except httpx.HTTPError:
        return False


@pytest.fixture
def newsroom(tmp_path):
    room = Newsroom(tmp_path)
    yield room
    room.stop()
    for number in range(len(room.started)):
        print(f"--- {number}\n{(tmp_path / f'{number}.log').read_text(errors='replace')[-3000:]}")


def test_an_article_streams_and_is_followed_again_exactly(newsroom):
    task_id = newsroom.submit("celeriac")
    seen, number = [], 0
    for number, event, data in newsroom.follow(task_id):
        seen.append((number, event, data))
        if sum(event == "token" for _, event, _ in seen) == 5:
            break  # the reader's connection is gone
    rest = list(newsroom.follow(task_id, after=number))
    whole = list(newsroom.follow(task_id))
    assert seen + rest == whole
    assert [number for number, _, _ in whole] == list(range(1, len(whole) + 1))
    assert whole[-1][1:] == ("end", whole[-1][2]) and whole[-1][2]["state"] == "SUCCESS"
    assert [data["agent_role"] for _, event, data in whole if event == "agent_execution_started"] == ["Researcher", "Writer", "Editor"]
    assert [data["done"] for _, event, data in whole if event == "progress"] == [1, 2, 3]
    told = "".join(data["text"] for _, event, data in whole if event == "token")
    assert told.endswith(whole[-1][2]["result"] + " ") or whole[-1][2]["result"].strip() in told
    assert [call["state"] for call in newsroom.calls()] == ["finished"] * 3


def test_stop_stops_the_model(newsroom):
    task_id = newsroom.submit("celeriac")
    for _, event, _ in newsroom.follow(task_id):
        if event == "token":
            break
    asked = time.monotonic()
    answer = httpx.post(f"{newsroom.web}/tasks/{task_id}/revoke", json={"terminate": True}, timeout=PATIENCE)
    answer.raise_for_status()
    until("the model's call is called off", lambda: newsroom.calls()[-1]["state"] == "called off")
    print(f"called off after {time.monotonic() - asked:.2f} s")
    *_, (_, event, data) = newsroom.follow(task_id)
    assert (event, data["state"]) == ("end", "REVOKED")
    assert len(newsroom.calls()) == 1


def test_a_killed_crew_goes_on_without_paying_again(newsroom):
    task_id = newsroom.submit("celeriac")
    frames, tokens = [], 0

    def follow():
        # As a browser does: again from where it was.
        while not frames or frames[-1][1] != "end":
            frames.extend(newsroom.follow(task_id, after=frames[-1][0] if frames else None))

    reader = threading.Thread(target=follow, daemon=True)
    reader.start()
    until("the writer writes", lambda: [call["role"] for call in newsroom.calls()] == ["Researcher", "Writer"]
          and newsroom.calls()[-1]["tokens"] > 3)  # fmt: skip
    newsroom.worker.send_signal(signal.SIGKILL)
    newsroom.worker.wait()
    newsroom.start_worker()
    reader.join(PATIENCE)
    assert frames and frames[-1][1] == "end" and frames[-1][2]["state"] == "SUCCESS"
    roles = [call["role"] for call in newsroom.calls()]
    # What was finished is not asked for again; the call that was cut in half is.
    assert roles == ["Researcher", "Writer", "Writer", "Editor"]
    assert [call["state"] for call in newsroom.calls()] == ["finished", "called off", "finished", "finished"]
