"""What a crew costs when its worker is lost, killed, told to go, or believes in a visibility timeout."""

import os
import re
import signal
import subprocess
import time

from conftest import until

ALL = ["Researcher", "Writer", "Editor"]
LEASE_SECONDS = 20


def check_once_more(newsroom, task_id):
    """The article is there, and no more was paid twice than the call that was cut off."""
    assert newsroom.end(task_id)["state"] == "SUCCESS"
    assert newsroom.roles() == ["Researcher", "Writer", "Writer", "Editor"]
    assert [call["state"] for call in newsroom.calls()] == ["finished", "called off", "finished", "finished"]


def begins_again(newsroom):
    """When the model is asked again."""
    until("somebody goes on with it", lambda: len(newsroom.calls()) == 3)
    return time.monotonic()


def test_a_killed_worker_s_crew_goes_on_elsewhere(slow_newsroom):
    newsroom = slow_newsroom
    first = newsroom.start_worker()
    task_id = newsroom.submit()
    newsroom.until_it_writes("Researcher")
    # Its start takes as long as an answer may.
    newsroom.start_worker()
    newsroom.until_it_writes("Writer")
    first.kill()
    killed = time.monotonic()
    took = begins_again(newsroom) - killed
    print(f"FIGURE kill -9: the next attempt asks the model after {took:.1f} s; leases last {LEASE_SECONDS} s")
    # Celery's next attempt comes after a minute and a half.
    assert took < LEASE_SECONDS + 25
    check_once_more(newsroom, task_id)


def deploy(newsroom, settings, env):
    """As an orchestrator does it: SIGTERM, and SIGKILL after 10 s. What the worker ended by."""
    first = newsroom.start_worker(app="variants", settings=settings, env=env)
    task_id = newsroom.submit()
    newsroom.until_it_writes("Researcher")
    newsroom.start_worker(app="variants", settings=settings, env=env)
    newsroom.until_it_writes("Writer")
    first.process.send_signal(signal.SIGTERM)
    told = time.monotonic()
    try:
        first.process.wait(10)
    except subprocess.TimeoutExpired:
        first.kill()
    took = begins_again(newsroom) - told
    print(f"FIGURE deploy {settings}: ended by {first.process.returncode}, the next attempt asks after {took:.1f} s")
    return task_id, first.process.returncode


def test_a_deploy_that_kills_repeats_one_call(very_slow_newsroom):
    task_id, code = deploy(very_slow_newsroom, {}, {})
    assert code == -signal.SIGKILL
    check_once_more(very_slow_newsroom, task_id)


def test_a_deploy_with_a_soft_shutdown_hands_over(very_slow_newsroom):
    task_id, code = deploy(very_slow_newsroom, {"worker_soft_shutdown_timeout": 3}, {"REMAP_SIGTERM": "SIGQUIT"})
    assert code != -signal.SIGKILL, "it was still there after 10 s"
    check_once_more(very_slow_newsroom, task_id)


def test_a_visibility_timeout_shorter_than_the_crew_costs_nothing(newsroom):
    """Both the application's, for workers of Celery's, and a lease of ours as short."""
    (newsroom.folder / "celeriac.toml").write_text("visibility_timeout = 2\nworker_restore_interval = 0.5\n")
    settings = {"broker_transport_options": {"visibility_timeout": 2}}
    workers = [newsroom.start_worker(app="variants", settings=settings) for _ in range(2)]
    task_id = newsroom.submit()
    assert newsroom.end(task_id)["state"] == "SUCCESS"
    print(f"FIGURE visibility timeout 2 s: {len(newsroom.calls())} calls where one run makes {len(ALL)}")
    assert newsroom.roles() == ALL
    assert not any("leases expired" in worker.text() for worker in workers)


def test_an_early_crew_whose_process_is_killed_fails_visibly(newsroom):
    worker = newsroom.start_worker(app="variants")
    advice = [line for line in worker.text().splitlines() if "acknowledged early" in line]
    assert len(advice) == 1 and "newsroom.early" in advice[0], worker.text()
    # It has no need of it.
    assert "newsroom.article" not in advice[0] and "newsroom.who" not in advice[0]
    task_id = newsroom.send("newsroom.early", "celeriac")
    newsroom.until_it_writes()
    [pid] = re.findall(r"^begin (\d+)$", newsroom.notes_file.read_text(), re.MULTILINE)
    os.kill(int(pid), signal.SIGKILL)
    end = newsroom.end(task_id)
    assert end["state"] == "FAILURE" and end["error"]["exc_type"] == "WorkerLostError", end
    assert type(newsroom.result(task_id).result).__name__ == "WorkerLostError"
    assert newsroom.get(newsroom.send("newsroom.who"))
    assert newsroom.roles() == ["Researcher"], "it runs at most once"
