"""Streams that are cut at random bytes, and whose server is killed, come whole: curl, EventSource, celeriac.js."""

import concurrent.futures
import json
import pathlib
import random
import re
import subprocess

import pytest
from playwright.sync_api import sync_playwright

from conftest import Cutter, until

CHROMIUM = "/usr/bin/chromium"
WORDS = 20_000
EXPECTED = "".join(f"w\u00f6rd{n} " for n in range(WORDS))
# The stream has some 400 KB with its framing. Browsers wait for a second before they reconnect, curl does not.
CUT_MOST_CURL, CUT_MOST_BROWSER = 12_000, 100_000
SEED = 7


def events(raw):
    """The complete events of a piece of a stream, by the WHATWG rules as far as they are used here."""
    found = []
    for block in raw.decode("utf-8", "replace").split("\n\n")[:-1]:
        fields = dict(re.findall(r"^(id|event|data): ?(.*)$", block, re.M))
        if "data" in fields:
            found.append((int(fields["id"]) if fields.get("id") else None, fields.get("event"), fields["data"]))
    return found


def curl(url, cutter):
    """Follows with curl, again and again from the last id, until the end. Returns the text and how often it called."""
    last, text, calls = None, "", 0
    while True:
        calls, before = calls + 1, last
        headers = ["-H", f"Last-Event-ID: {last}"] if last else []
        ran = subprocess.run(["curl", "-sN", *headers, url], capture_output=True, timeout=300)
        for position, event, data in events(ran.stdout):
            if position is None or position <= (last or 0):
                continue
            assert position == (last or 0) + 1, f"{position} after {last}"
            last = position
            if event == "token":
                text += json.loads(data)["text"]
            if event == "end":
                return text, calls
        if last == before:
            # Tokens of half a second, when the machine pauses, make one record that is longer than any of the cuts.
            cutter.most += 1_000


@pytest.mark.parametrize("killed", [False, True], ids=["cut", "cut-and-killed"])
def test_a_stream_comes_whole(serve, killed):
    server = serve("--bench-tasks", "--concurrency", "2")
    print("seed", SEED)
    for_curl = Cutter(server.port, random.Random(SEED), CUT_MOST_CURL)
    cutter = Cutter(server.port, random.Random(SEED), CUT_MOST_BROWSER)
    task_id = server.submit("celeriac.bench.tokens", WORDS, 2_000)
    path = f"/api/v1/tasks/{task_id}/events"
    url = f"http://127.0.0.1:{cutter.port}{path}"
    with concurrent.futures.ThreadPoolExecutor() as pool:
        by_curl = pool.submit(curl, f"http://127.0.0.1:{for_curl.port}{path}", for_curl)
        if killed:
            log = f"/api/v1/tasks/{task_id}/events?after=0&limit=1"
            half = lambda: server.call("GET", log, headers={"Accept": "application/json"}).json().get("last", 0) > 100
            until(half, "the stream should have got to its middle")
            server.kill()
            server.start()
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page()
            html = (pathlib.Path(__file__).parent / "page.html").read_text()
            script = server.call("GET", "/celeriac.js").body.decode()
            origin = f"http://127.0.0.1:{cutter.port}"
            # Page and script come from the test: the cutter cuts whatever goes through it.
            page.route(f"{origin}/page.html", lambda route: route.fulfill(body=html, content_type="text/html"))
            page.route(f"{origin}/celeriac.js", lambda route: route.fulfill(body=script, content_type="text/javascript"))
            page.goto(f"{origin}/page.html")
            page.wait_for_function("window.ready")
            own, source, whole = page.evaluate(
                "(url) => Promise.all([followed(url), eventSource(url), text(url)])", url)
            browser.close()
        text, calls = by_curl.result()
    result = server.result(task_id)
    assert result["state"] == "SUCCESS", result
    # A worker whose server is killed finishes what it runs.
    assert text == EXPECTED
    assert calls > 20 and cutter.cuts > 6, f"the connections should have been cut often: {calls}, {cutter.cuts}"
    for name, seen in {"celeriac.js": own, "EventSource": source}.items():
        assert seen["text"] == text, name
        assert seen["end"]["state"] == "SUCCESS", name
        assert seen["ids"] == sorted(set(seen["ids"])), name
    assert whole["text"] == text
    assert source["opened"] > 3
    cutter.close()
    for_curl.close()


def test_a_stream_token_opens_one_stream(serve):
    """A browser cannot send headers with EventSource: a token for this one stream goes in its URL."""
    secret = "a-secret-for-tests-only"
    server = serve("--bench-tasks", env={"CELERIAC_TOKEN": secret})
    server.token = secret
    first, second = (server.submit("celeriac.bench.tokens", 10, 0) for _ in range(2))
    assert server.result(first)["state"] == "SUCCESS"
    token = server.call("POST", f"/api/v1/tasks/{first}/stream-token").json()["token"]
    server.token = None
    assert server.call("GET", f"/api/v1/tasks/{first}/events").status == 401
    assert server.call("GET", f"/api/v1/tasks/{first}/events?token={token}").status == 200
    assert server.call("GET", f"/api/v1/tasks/{second}/events?token={token}").status == 401
    assert server.call("GET", f"/api/v1/tasks/{first}?token={token}").status == 401
    log = (server.folder / "serve.log").read_text()
    assert secret not in log and token not in log
