"""A crew that is to stop stops, and with it the model's call: limits, and revocation, in every pool."""

import os
import signal
import time

import pytest

POOLS = {
    "prefork": ((), "newsroom.article"),
    "threads": (("-P", "threads"), "newsroom.article"),
    # A coroutine of the loop, and a plain function on a thread beside it.
    "asyncio": (("-P", "asyncio"), "newsroom.awaited"),
    "asyncio-thread": (("-P", "asyncio"), "newsroom.article"),
}


@pytest.fixture(params=POOLS)
def pool(request, slow_newsroom):
    options, task = POOLS[request.param]
    slow_newsroom.worker = slow_newsroom.start_worker(*options, app="variants")
    return slow_newsroom, task


def called_off(newsroom, asked, what):
    """Waits until the model's call is closed; prints when, and how much it wrote meanwhile."""
    before = newsroom.calls()[-1]["tokens"]
    while (call := newsroom.calls()[-1])["state"] == "running":
        assert time.monotonic() < asked + 60, f"{what}: the model still writes"
        time.sleep(0.02)
    assert call["state"] == "called off", f"{what}: the model wrote to its end"
    print(f"FIGURE {what}: the call is closed after {time.monotonic() - asked:.2f} s and {call['tokens'] - before} more tokens")


def test_a_soft_limit_stops_a_crew(pool):
    newsroom, task = pool
    limit = 4
    task_id = newsroom.send(task, "celeriac", soft_time_limit=limit)
    newsroom.until_it_writes()
    end = newsroom.end(task_id)
    assert end["state"] == "FAILURE" and "SoftTimeLimitExceeded" in str(end["error"]), end
    assert type(newsroom.result(task_id).result).__name__ == "SoftTimeLimitExceeded"
    called_off(newsroom, time.monotonic(), "soft limit")
    # CrewAI would ask once more, and a retry as well.
    assert newsroom.roles() == ["Researcher"]
    assert newsroom.get(newsroom.send("newsroom.who")), "the worker goes on"
    assert newsroom.roles() == ["Researcher"]


def test_a_revoked_crew_stops(pool):
    newsroom, task = pool
    task_id = newsroom.send(task, "celeriac")
    newsroom.until_it_writes()
    asked = time.monotonic()
    answer = newsroom.revoke(task_id)
    print(f"FIGURE revoke: {answer['text']!r} after {time.monotonic() - asked:.2f} s")
    assert answer["revoked"] == "running" and answer["terminate"] is True and answer["worker"], answer
    called_off(newsroom, asked, "revoke")
    end = newsroom.end(task_id)
    print(f"FIGURE revoke: {end['state']} seen after {time.monotonic() - asked:.2f} s")
    assert end["state"] == "REVOKED"
    assert newsroom.get(newsroom.send("newsroom.who")), "the worker goes on"
    assert newsroom.roles() == ["Researcher"]


def test_a_crew_that_reports_nothing_is_killed_at_its_hard_limit(slow_newsroom):
    """Its process is stopped where it is, so that it says nothing more and hears nothing."""
    worker = slow_newsroom.start_worker(app="variants")
    task_id = slow_newsroom.send("newsroom.article", "celeriac", soft_time_limit=3, time_limit=5)
    slow_newsroom.until_it_writes()
    [child] = worker.children()
    os.kill(child, signal.SIGSTOP)
    end = slow_newsroom.end(task_id)
    assert end["state"] == "FAILURE" and "TimeLimitExceeded" in str(end["error"]), end
    called_off(slow_newsroom, time.monotonic(), "hard limit")
    assert slow_newsroom.roles() == ["Researcher"]
