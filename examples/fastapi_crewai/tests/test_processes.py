"""What the processes of a worker with crews have in memory, import, and leave running."""

import os
import pathlib
import signal
import socket
import threading
import time

import pytest
from conftest import until

CHILDREN = 4
PRIVATE_MIB_MAX = 40


def private_mib(pid):
    """What a process has for itself alone."""
    with open(f"/proc/{pid}/smaps_rollup") as smaps:
        return sum(int(line.split()[1]) for line in smaps if line.startswith(("Private_Clean", "Private_Dirty"))) / 1024


def crew_in_each(newsroom):
    """A crew at the same time in each child."""
    sent = [newsroom.send("newsroom.article", f"celeriac {n}") for n in range(CHILDREN)]
    for task_id in sent:
        newsroom.get(task_id)


def replaced(newsroom, worker):
    """Children that the zygote has forked after all that it has learned until now."""
    before = set(worker.children())
    for pid in before:
        os.kill(pid, signal.SIGKILL)

    def born():
        # Who did nothing is missed when it is wanted.
        newsroom.get(newsroom.send("newsroom.who"))
        found = set(worker.children()) - before
        return len(found) == CHILDREN and sorted(found)

    return until("there are new children", born)


def test_a_child_costs_little_memory_and_no_import(newsroom):
    worker = newsroom.start_worker("-c", str(CHILDREN), app="variants")
    first = until("they are there", lambda: len(found := worker.children()) == CHILDREN and found)
    crew_in_each(newsroom)
    ignorant = [private_mib(pid) for pid in first]
    born = replaced(newsroom, worker)
    idle = [private_mib(pid) for pid in born]
    crew_in_each(newsroom)
    assert sorted(worker.children()) == born
    used = [private_mib(pid) for pid in born]
    for what, figures in [("first children, after a crew", ignorant), ("their successors, idle", idle),
                          ("their successors, after a crew", used)]:  # fmt: skip
        print(f"FIGURE private memory of {what}: {', '.join(f'{mib:.0f}' for mib in figures)} MiB")
    print(f"FIGURE zygote: {private_mib(worker.zygote()):.0f} MiB of its own")
    assert max(used) <= PRIVATE_MIB_MAX
    imports = [note for note in newsroom.notes() if note.startswith("import ")]
    assert imports == [f"import {worker.zygote()} True"], "by the zygote alone, and before all tasks"
    assert "threads are alive" not in worker.text(), "where children are forked"


def test_each_child_stores_in_a_folder_of_its_own(newsroom):
    worker = newsroom.start_worker("-c", str(CHILDREN))
    crew_in_each(newsroom)
    stored = newsroom.folder / "storage"
    assert sorted(path.name for path in stored.iterdir()) == [f"process-{place}" for place in range(CHILDREN)]
    files = {path.relative_to(stored).parts[0] for path in stored.rglob("*") if path.is_file()}
    assert len(files) == CHILDREN, sorted(map(str, stored.rglob("*")))
    # CrewAI makes the folder that all of them would share when it is imported.
    shared = pathlib.Path(newsroom.environment["CREWAI_STORAGE_DIR"])
    assert not [path for path in shared.rglob("*") if path.is_file()]
    # One that comes in the place of another has its folder.
    os.kill(worker.children()[0], signal.SIGKILL)
    newsroom.get(newsroom.send("newsroom.article", "celeriac"))
    assert len(list(stored.iterdir())) == CHILDREN


@pytest.fixture
def black_hole():
    """Where telemetry goes: a proxy that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = []

        def take():
            while True:
                try:
                    taken.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=take, daemon=True).start()
        yield server.getsockname()[1], taken
        server.shutdown(socket.SHUT_RDWR)
        for connection in taken:
            connection.close()


def test_telemetry_does_not_hold_up_a_stop(newsroom, black_hole):
    port, taken = black_hole
    proxy = f"http://127.0.0.1:{port}"
    telemetry = {"CREWAI_DISABLE_TELEMETRY": "false", "OTEL_SDK_DISABLED": "false", "CREWAI_DISABLE_TRACKING": "false",
                 "HTTPS_PROXY": proxy, "HTTP_PROXY": proxy, "NO_PROXY": "127.0.0.1,localhost"}  # fmt: skip
    worker = newsroom.start_worker(app="variants", env=telemetry)
    assert "handler crewai.telemetry.telemetry" in newsroom.notes(), "CrewAI has put no handlers of its own in place"
    # It has started a thread as well, which knows what to do at a fork; it is named.
    until("its thread is named", lambda: "OtelBatchSpanRecordProcessor" in worker.text())
    newsroom.get(newsroom.submit())
    until("telemetry is sent", lambda: taken)
    task_id = newsroom.submit()
    newsroom.until_it_writes()
    asked = time.monotonic()
    newsroom.revoke(task_id)
    assert newsroom.end(task_id)["state"] == "REVOKED"
    print(f"FIGURE revoke with telemetry: {time.monotonic() - asked:.2f} s")
    newsroom.get(newsroom.submit())
    asked = time.monotonic()
    worker.process.terminate()
    assert worker.process.wait(60) == 0
    took = time.monotonic() - asked
    print(f"FIGURE SIGTERM with telemetry: ended after {took:.2f} s")
    # CrewAI's handlers hold up a process of their own for longer.
    assert took < 10
