"""Celery's tasks that do nothing: publishes them, has a worker run them, and prints what that took.

Arguments: the URL of an empty Redis database, how many tasks, how many processes, and who runs them: `prefork` for
Celery's own worker with this Python, `solo` for as many of those without children, or the path of another program that
takes Celery's options. BENCH_IMPORT names modules that the application imports, separated by commas.
"""

import importlib
import json
import os
import pathlib
import subprocess
import sys
import time

from celery import Celery

app = Celery("celery_bench", broker=os.environ.get("BENCH_URL"), backend=os.environ.get("BENCH_URL"))
app.conf.update(broker_connection_retry_on_startup=True)
for module in filter(None, os.environ.get("BENCH_IMPORT", "").split(",")):
    importlib.import_module(module)


@app.task(name="bench.noop")
def noop(n):
    return n


def pss(process):
    """KiB of memory that a process and those it has started have to themselves, and their share of the rest."""
    total, children = 0, {}
    for entry in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, parent = entry.parent.name, entry.read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        children.setdefault(parent, []).append(pid)
    found = [str(process)]
    for pid in found:
        found.extend(children.get(pid, ()))
        try:
            rollup = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return total


def commands(runner, processes):
    """What is to be started."""
    alone = ["-l", "ERROR", "--without-mingle", "--without-gossip"]
    celery = [sys.executable, "-m", "celery", "-A", "celery_bench", "worker", *alone]
    if runner == "prefork":
        return [[*celery, "-c", str(processes)]]
    if runner == "solo":
        return [[*celery, "-P", "solo", "-n", f"solo{n}@%h"] for n in range(processes)]
    return [[runner, "worker", "-A", "celery_bench", "-c", str(processes), *alone]]


def main(url, tasks, processes, runner):
    os.environ["BENCH_URL"] = url
    app.conf.update(broker_url=url, result_backend=url)
    redis = app.backend.client
    figures = {}
    empty = redis.info("memory")["used_memory"]
    began = time.monotonic()
    with app.producer_pool.acquire(block=True) as producer:
        # As those who publish many do, who do not wait for them one by one: no subscription for each.
        for n in range(tasks):
            noop.apply_async((n,), producer=producer, ignore_result=False, add_to_parent=False)
    figures["publish"] = tasks / (time.monotonic() - began)
    figures["bytes"] = (redis.info("memory")["used_memory"] - empty) / tasks
    workers = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for command in commands(runner, processes)
    ]
    try:
        left = lambda: redis.llen("celery") + redis.hlen("unacked")
        # The time it takes to start is not counted.
        while (first := left()) > tasks * 0.98:
            assert all(worker.poll() is None for worker in workers), "the worker has ended"
            time.sleep(0.01)
        began = time.monotonic()
        while (count := left()) > tasks * 0.01:
            time.sleep(0.01)
        figures["run"] = (first - count) / (time.monotonic() - began)
        while left():
            time.sleep(0.01)
        latencies = []
        for n in range(1520):
            began = time.monotonic()
            assert noop.delay(n).get(timeout=60) == n
            latencies.append((time.monotonic() - began) * 1e6)
        latencies = sorted(latencies[20:])
        for percent in (50, 90, 99):
            figures[f"p{percent}"] = latencies[len(latencies) * percent // 100]
        figures["pss"] = sum(pss(worker.pid) for worker in workers)
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait()
    print(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
