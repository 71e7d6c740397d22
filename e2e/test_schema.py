"""The API against its own document."""

import json
import pathlib
import subprocess
import sys

from conftest import until

SECRET = "a-secret-for-tests-only"
METHODS = {"get", "put", "post", "delete", "patch", "head"}
SEED = 20261124


def operations(server):
    document = server.call("GET", "/openapi.json").json()
    assert document["openapi"].startswith("3.1"), document["openapi"]
    return [(method, path, operation) for path, item in document["paths"].items()
            for method, operation in item.items() if method in METHODS]


def schemathesis(server, settings, *options):
    """Sends all kinds of requests: no 5xx, no undocumented status, no body that does not fit its schema. Streams do not
    end, so that logs are asked for as pages; waits are cut short."""
    (server.folder / "schemathesis.toml").write_text(settings)
    ran = subprocess.run(
        [pathlib.Path(sys.executable).parent / "schemathesis", "run", f"{server.url}/openapi.json",
         "--header", "Accept: application/json", "--checks", "all", "--max-examples", "40", "--seed", str(SEED),
         "--request-timeout", "45", "--no-color", *options],
        cwd=server.folder, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-20000:] + ran.stderr[-2000:]
    assert server.call("GET", "/readyz").status == 200


WAIT = '[parameters]\n"query.wait" = 0\n'


# The schema of a call by `POST /tasks` is that of any task's. Given the name of one that is described, which other answers
# tell, its arguments may be refused all the same.
NAMED = """
[[operations]]
include-path-regex = "^/api/v1/tasks(/batch)?$"
[operations.checks.positive_data_acceptance]
expected-statuses = ["2xx", "401", "403", "404", "409", "422", "429"]

# The schema says less than what Celery's tuples are.
[[operations]]
include-path-regex = "^/api/v1/groups/"
[operations.checks.positive_data_acceptance]
expected-statuses = ["2xx", "401", "403", "404", "409", "422", "429"]
"""


def test_the_api_keeps_to_its_document(serve):
    """All of it, from nothing."""
    server = serve("--bench-tasks")
    schemathesis(server, WAIT + NAMED, "--phases", "examples,coverage,fuzzing,stateful")


def test_the_api_keeps_to_its_document_for_any_task(serve):
    """Submitting, where a name that no worker knows is none the worse."""
    server = serve("--accept-unknown-tasks", "--roles", "web")
    schemathesis(server, WAIT, "--include-path-regex", "^/api/v1/tasks(/batch)?$", "--phases", "coverage,fuzzing")


def test_the_api_keeps_to_its_document_for_a_task_that_ran(serve):
    """The same with the id of a task that exists, and has a log."""
    server = serve("--bench-tasks")
    task_id = server.submit("celeriac.bench.tokens", 50, 0, tags=["t"])
    assert server.result(task_id)["state"] == "SUCCESS"
    settings = WAIT + f'"path.id" = {json.dumps(task_id)}\n'
    schemathesis(server, settings, "--exclude-checks", "positive_data_acceptance", "--include-path-regex", r"\{id\}",
                 "--phases", "coverage,fuzzing")


def test_every_route_wants_a_token(serve):
    """Once a token is set there is no way in without one, and a wrong one is none."""
    server = serve("--bench-tasks", env={"CELERIAC_TOKEN": f"admin:{SECRET},read:only-for-reading-here"})
    # What tells only that the server lives is for probes, which have no secrets.
    public = {"/livez", "/readyz"}
    until(lambda: server.call("GET", "/readyz").status == 200, "the worker should have come up")
    server.token = SECRET
    listed = operations(server)
    server.token = None
    assert len(listed) > 20
    for method, path, _ in listed:
        url = path
        for name in ("id", "name", "command", "kind", "task"):
            url = url.replace("{%s}" % name, "x")
        body = {} if method in ("post", "put") else None
        bare = server.call(method.upper(), url, body).status
        wrong = server.call(method.upper(), url, body, token="not-the-secret-at-all").status
        if path in public:
            assert bare == 200, path
        else:
            assert (bare, wrong) == (401, 401), f"{method} {path}"
    for path in ("/docs/", "/openapi.json", "/metrics"):
        assert server.call("GET", path).status == 401, path
    # A reader may look and not touch.
    reader = "only-for-reading-here"
    assert server.call("GET", "/api/v1/tasks", token=reader).status == 200
    for method, path, _ in listed:
        if method != "get":
            url = path.replace("{id}", "x").replace("{name}", "x").replace("{command}", "ping")
            status = server.call(method.upper(), url, {}, token=reader).status
            allowed = path.endswith("/stream-token")
            assert status == 403 or allowed and status in (200, 404), f"{method} {path}: {status}"
