"""`celeriac serve`: one process tree that starts, heals and ends as a whole."""

import contextlib
import os
import pathlib
import shutil
import signal
import sqlite3

from conftest import BINARY, until


def children(pid):
    # Each thread has those that it started.
    lists = pathlib.Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for children in lists for child in children.read_text().split()]


def alive(pid):
    status = pathlib.Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def worker_of(server):
    pids = until(lambda: children(server.process.pid), "a worker should have been started")
    assert len(pids) == 1
    return pids[0]


def ready(server):
    return server.call("GET", "/readyz").status == 200


def freeze(server, pid):
    """Stops a process in its tracks, while it does not write: who is stopped in a commit keeps everybody from the file."""
    def stopped():
        os.kill(pid, signal.SIGSTOP)
        with contextlib.closing(sqlite3.connect(server.folder / "celeriac.db", timeout=2, isolation_level=None)) as file:
            try:
                file.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                os.kill(pid, signal.SIGCONT)
                return False
            file.execute("ROLLBACK")
            return True

    until(stopped, "it should not write all the time")


def test_the_worker_is_a_process_of_its_own_that_goes_with_the_server(serve):
    server = serve("--bench-tasks")
    worker = worker_of(server)
    until(lambda: ready(server), "it should be ready")
    server.kill()
    until(lambda: not alive(worker), "the worker should have gone with its server")


def test_a_worker_that_dies_is_started_again_and_only_readiness_says_so(serve):
    server = serve("--bench-tasks")
    until(lambda: ready(server), "it should be ready")
    task_id = server.submit("celeriac.bench.noop", 1)
    assert server.result(task_id)["state"] == "SUCCESS"
    worker = worker_of(server)
    # Stopped in its tracks rather than gone: readiness finds out by its silence, and nothing else turns red.
    freeze(server, worker)
    until(lambda: not ready(server), "readiness should have turned red")
    body = server.call("GET", "/readyz").json()
    assert server.call("GET", "/livez").status == 200
    assert server.call("GET", "/api/v1/tasks").status == 200
    assert [check["name"] for check in body["checks"] if not check["ok"]] == ["worker"], body
    # Once it can hold no lease any more it is replaced.
    until(lambda: [pid for pid in children(server.process.pid) if pid != worker], "another should have been started")
    until(lambda: ready(server), "it should be ready again")
    task_id = server.submit("celeriac.bench.noop", 2)
    assert server.result(task_id)["state"] == "SUCCESS"


def test_a_worker_is_started_again_when_the_program_was_replaced(serve, tmp_path):
    """As an upgrade does it under a server that runs."""
    program = tmp_path / "program"
    shutil.copy(BINARY, program)
    server = serve("--bench-tasks", binary=program)
    until(lambda: ready(server), "it should be ready")
    worker = worker_of(server)
    program.unlink()
    program.write_text("#!/bin/false")
    program.chmod(0o755)
    os.kill(worker, signal.SIGKILL)
    until(lambda: [pid for pid in children(server.process.pid) if pid != worker], "another should have been started")
    until(lambda: ready(server), "it should be ready again")
    task_id = server.submit("celeriac.bench.noop", 1)
    assert server.result(task_id)["state"] == "SUCCESS"


def test_the_tree_ends_as_a_whole_when_told_to(serve):
    server = serve("--bench-tasks")
    until(lambda: ready(server), "it should be ready")
    worker = worker_of(server)
    # What runs finishes.
    task_id = server.submit("celeriac.bench.ticks", 10, 0.1)
    until(lambda: server.call("GET", f"/api/v1/tasks/{task_id}").json()["state"] == "STARTED", "it should run")
    server.stop()
    assert not alive(worker)
    server.start()
    assert server.result(task_id)["state"] == "SUCCESS"
    view = server.call("GET", f"/api/v1/tasks/{task_id}").json()
    assert len(view["attempts"]) == 1, view["attempts"]


def test_a_task_is_revoked_over_http_and_its_stream_says_so(serve):
    server = serve("--bench-tasks")
    task_id = server.submit("celeriac.bench.ticks", 10_000, 0.1)
    until(lambda: server.call("GET", f"/api/v1/tasks/{task_id}").json()["state"] == "STARTED", "it should run")
    revoked = server.call("POST", f"/api/v1/tasks/{task_id}/revoke", {"terminate": True})
    assert revoked.status == 200 and revoked.json()["revoked"] == "running", revoked.body
    assert server.result(task_id)["state"] == "REVOKED"
    log = server.call("GET", f"/api/v1/tasks/{task_id}/events").body.decode()
    assert "event: end" in log and '"REVOKED"' in log.replace("'", '"')
    # It is over: whoever comes back hears that there is nothing more.
    last = max(int(line[4:]) for line in log.splitlines() if line.startswith("id: "))
    assert server.call("GET", f"/api/v1/tasks/{task_id}/events?after={last}").status == 204


def test_settings_that_cannot_work_are_refused(serve, tmp_path):
    import subprocess
    for options, expected in [
        (["--bind", "0.0.0.0:0"], "token"),
        (["--roles", "cook"], "cook"),
        (["--roles", "beat"], "scheduler"),
        (["--bind", "127.0.0.1:0", "--token", "short"], "16"),
    ]:
        ran = subprocess.run([BINARY, "-b", f"sqlite://{tmp_path}/x.db", "serve", *options],
                             capture_output=True, text=True, timeout=60,
                             env={k: v for k, v in os.environ.items() if not k.startswith("CELERIAC_")})
        assert ran.returncode == 2, (options, ran)
        assert expected in ran.stderr, (options, ran.stderr)
        assert "short" not in ran.stderr.replace("shorter", ""), "a secret is not repeated"
