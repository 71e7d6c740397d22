"""Celery at the same work: publishes tasks that do nothing, has them run by prefork workers, and prints the rates.

Arguments: the URL of an empty Redis database, how many tasks, and how many processes.
"""

import json
import os
import subprocess
import sys
import time

from celery import Celery

app = Celery("celery_bench", broker=os.environ.get("BENCH_URL"), backend=os.environ.get("BENCH_URL"))
app.conf.update(broker_connection_retry_on_startup=True)


@app.task(name="bench.noop")
def noop(n):
    return n


def main(url, tasks, processes):
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
    worker = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "celery_bench", "worker", "-c", str(processes), "-l", "error",
         "--without-mingle", "--without-gossip"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        done = lambda: redis.dbsize() - redis.exists("celery", "unacked", "unacked_index", "_kombu.binding.celery",
                                                     "_kombu.binding_permanent.celery", "_kombu.binding.celery.pidbox",
                                                     "_kombu.binding.celeryev", "unacked_mutex")
        # The time it takes to start is not counted.
        while (first := done()) < tasks * 0.02:
            time.sleep(0.01)
        began = time.monotonic()
        while (count := done()) < tasks * 0.99:
            time.sleep(0.01)
        figures["run"] = (count - first) / (time.monotonic() - began)
        while redis.llen("celery") or redis.hlen("unacked"):
            time.sleep(0.01)
        latencies = []
        for n in range(520):
            began = time.monotonic()
            assert noop.delay(n).get(timeout=60) == n
            latencies.append((time.monotonic() - began) * 1e6)
        latencies = sorted(latencies[20:])
        figures["p50"], figures["p99"] = latencies[len(latencies) // 2], latencies[len(latencies) * 99 // 100]
    finally:
        worker.terminate()
        worker.wait()
    print(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
