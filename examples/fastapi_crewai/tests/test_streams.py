"""What those see who follow a crew, early, late, cut off, or two at once; and how little is to be written for it."""

import contextlib
import pathlib
import re
import sqlite3
import threading
import time

import pytest
from conftest import EXAMPLE, PATIENCE, opened


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    with opened(tmp_path_factory.mktemp("newsroom")) as room:
        room.worker = room.start_worker(app="variants")
        yield room


#: What CrewAI tells of one task of a crew with one agent, in the order in which it happens.
ONE_TASK = ["task_started", "agent_execution_started", "llm_call_started", "token", "llm_call_completed",
            "agent_execution_completed", "task_completed", "progress", "step"]  # fmt: skip


def kinds(frames):
    """Their events, each run of tokens once."""
    found = [event for _, event, _ in frames]
    return [event for at, event in enumerate(found) if event != "token" or found[at - 1] != "token"]


def check_whole(frames):
    """Whether this is all of an article, in order."""
    assert [number for number, _, _ in frames] == list(range(1, len(frames) + 1))
    assert frames[-1][1] == "end" and frames[-1][2]["state"] == "SUCCESS", frames[-1]
    assert [event for event in kinds(frames) if event in ONE_TASK] == ONE_TASK * 3, kinds(frames)
    assert [data["agent_role"] for _, event, data in frames if event == "agent_execution_started"] == [
        "Researcher", "Writer", "Editor"]  # fmt: skip
    assert [data["done"] for _, event, data in frames if event == "progress"] == [1, 2, 3]
    told = "".join(data["text"] for _, event, data in frames if event == "token")
    assert frames[-1][2]["result"].strip() in told
    # Every word of every answer.
    assert len(told.split()) == 3 * (60 + len("Thought: I now can give a great answer Final Answer:".split()))


def test_readers_that_are_cut_off_late_or_two_at_once_all_see_all(shared):
    before = len(shared.calls())
    task_id = shared.submit()
    first, second = [], []
    reader = threading.Thread(target=shared.follow_as_browsers_do, args=(task_id, first), daemon=True)
    reader.start()
    number = 0
    for number, event, data in shared.follow(task_id):
        second.append((number, event, data))
        if sum(event == "token" for _, event, _ in second) == 5:
            break  # this reader's connection is gone
    second += shared.follow(task_id, after=number)
    reader.join(PATIENCE)
    late = list(shared.follow(task_id))
    assert first == second == late
    check_whole(late)
    print(f"FIGURE stream: {len(late)} records, lost 0, out of order 0")
    assert [call["state"] for call in shared.calls()[before:]] == ["finished"] * 3


def test_a_restart_of_the_api_loses_nothing(newsroom):
    newsroom.start_worker()
    task_id = newsroom.submit()
    frames = []
    reader = threading.Thread(target=newsroom.follow_as_browsers_do, args=(task_id, frames), daemon=True)
    reader.start()
    for role in ["Researcher", "Writer"]:
        newsroom.until_it_writes(role)
        for process in newsroom.api:
            process.kill()
        newsroom.start_api()
    reader.join(PATIENCE)
    check_whole(frames)
    assert frames == list(newsroom.follow(task_id))
    assert [call["state"] for call in newsroom.calls()] == ["finished"] * 3


def test_tokens_are_counted_once(shared):
    before = len(shared.calls())
    figures = shared.get(shared.send("newsroom.counted", "celeriac"))
    calls = shared.calls()[before:]
    billed = sum(call["usage"]["total_tokens"] for call in calls)
    print(f"FIGURE tokens: billed {billed}, celeriac {figures['celeriac']['total']}, CrewAI {figures['crewai']}")
    assert figures["celeriac"]["calls"] == len(calls) == 3
    assert figures["celeriac"]["total"] == billed
    assert figures["celeriac"]["completion"] == sum(call["tokens"] for call in calls)


def test_records_arrive_soon(shared):
    """Through the worker, Redis, the server and the web application, on one clock."""
    task_id = shared.send("newsroom.clocked", 300)
    late = [time.time() - data for _, event, data in shared.follow(task_id) if event == "clock"]
    assert len(late) == 300
    # The first ones were there before anybody followed.
    late = sorted(late[50:])
    p50, p99 = (1000 * late[len(late) * at // 100] for at in (50, 99))
    print(f"FIGURE delivery of a record: p50 {p50:.1f} ms, p99 {p99:.1f} ms")
    # Who looks by a clock and is not woken takes longer.
    assert p50 < 500


def noted_outputs(newsroom):
    """What CrewAI has noted in the folders of all processes."""
    noted = []
    for file in sorted(newsroom.folder.glob("storage/process-*/latest_kickoff_task_outputs.db")):
        with contextlib.closing(sqlite3.connect(file)) as database:
            noted += database.execute("SELECT task_id, timestamp FROM latest_kickoff_task_outputs ORDER BY 1").fetchall()
    return noted


def test_what_crewai_keeps_for_a_replay_stays_with_the_crew(shared):
    calls, noted = len(shared.calls()), noted_outputs(shared)
    assert shared.get(shared.send("newsroom.replayed", "celeriac"))
    assert shared.roles()[calls:] == ["Researcher", "Writer", "Editor", "Editor"]
    assert noted_outputs(shared) == noted, "crews that run at the same time would clear it away"


def test_the_server_is_small(shared):
    """After all that the tests before this one have asked of it, and a stream of now."""
    task_id = shared.submit()
    assert shared.end(task_id)["state"] == "SUCCESS"
    status = pathlib.Path(f"/proc/{shared.api[1].process.pid}/status").read_text()
    mib = int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1024
    print(f"FIGURE server: {mib:.0f} MiB resident")
    # A build that is not optimised; one that is has half of it.
    assert mib < 60


#: Lines that are there because of celeriac: submit, status, progress, stream, stop, going on.
GLUE = re.compile(r"\bceleriac\.(crewai|fastapi)\b")


def test_the_glue_is_a_few_lines():
    files = ["main.py", "tasks.py", "newsroom_app.py", "crew.py"]
    lines = [line for file in files for line in (EXAMPLE / file).read_text().splitlines() if GLUE.search(line)]
    print(f"FIGURE glue: {len(lines)} lines", *lines, sep="\n")
    # And nothing else knows of it.
    assert 0 < len(lines) < 10
    assert not re.search("celeriac|StreamingResponse|redis|asyncio", (EXAMPLE / "crew.py").read_text())
