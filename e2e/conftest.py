"""Servers to test against: the real binary, started as a user would start it, on a free port of the loopback."""

import json
import os
import pathlib
import select
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
BINARY = pathlib.Path(os.environ.get("CELERIAC_BINARY", TARGET / "debug" / "celeriac"))
PATIENCE = 60


class Answer:
    """What the server answered."""

    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    def json(self):
        return json.loads(self.body)


class Serve:
    """One `celeriac serve` on a store of its own, which can be killed and started again on the same port."""

    def __init__(self, folder, *options, env=None, binary=BINARY):
        self.folder, self.options, self.env, self.binary = folder, options, env or {}, binary
        self.port = free_port()
        self.process = None
        self.token = None
        self.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def start(self):
        env = {k: v for k, v in os.environ.items() if not k.startswith(("CELERIAC_", "CELERY_"))} | self.env
        self.process = subprocess.Popen(
            [self.binary, "--json", "-b", f"sqlite://{self.folder}/celeriac.db", "serve",
             "--bind", f"127.0.0.1:{self.port}", *self.options],
            cwd=self.folder, stdout=subprocess.PIPE, stderr=open(self.folder / "serve.log", "ab"), env=env)
        said = self.process.stdout.readline()
        assert json.loads(said)["url"] == self.url, said

    def kill(self):
        """As a machine that loses power would end it: no goodbye, for web and worker alike."""
        self.process.kill()
        self.process.wait()

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            assert self.process.wait(PATIENCE) == 0

    def call(self, method, path, body=None, token=None, headers=None):
        request = urllib.request.Request(self.url + path, method=method, headers=dict(headers or {}))
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        if token or self.token:
            request.add_header("Authorization", f"Bearer {token or self.token}")
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return Answer(answer.status, answer.headers, answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.headers, error.read())

    def submit(self, task, *args, **more):
        answer = self.call("POST", "/api/v1/tasks", {"task": task, "args": list(args)} | more)
        assert answer.status == 202, answer.body
        return answer.json()["id"]

    def result(self, task_id):
        """The result of a task, once it is there."""
        return until(lambda: self.finished(task_id), f"task {task_id} should have finished")

    def finished(self, task_id):
        answer = self.call("GET", f"/api/v1/tasks/{task_id}/result?wait=30")
        return answer.json() if answer.status == 200 else None


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(look, complaint):
    """Waits for a condition."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found = look()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(complaint)


class Cutter:
    """A proxy that cuts each connection after a random number of bytes, and goes on where the server comes back."""

    def __init__(self, port, random, most):
        self.target, self.random, self.most, self.cuts = port, random, most, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.carry, args=(client, self.random.randrange(1, self.most)), daemon=True).start()

    def carry(self, client, left):
        with client:
            try:
                server = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                return
            with server:
                try:
                    left = self.exchange(client, server, left)
                except OSError:
                    return
            if left == 0:
                self.cuts += 1
                # A reset, as a network that goes away makes it.
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    @staticmethod
    def exchange(client, server, left):
        """Carries until one of them ends or so many bytes went to the client; returns what is left of those."""
        while left > 0:
            for ready in select.select([client, server], [], [])[0]:
                if ready is client:
                    data = client.recv(4096)
                    server.sendall(data)
                else:
                    data = server.recv(min(left, 4096))
                    client.sendall(data)
                    left -= len(data)
                if not data:
                    return left or 1
        return 0

    def close(self):
        self.listener.close()


@pytest.fixture
def serve(tmp_path):
    """Starts servers, and stops those that still run."""
    started = []

    def start(*options, **more):
        folder = tmp_path / str(len(started))
        folder.mkdir()
        started.append(Serve(folder, *options, **more))
        return started[-1]

    yield start
    for server in started:
        if server.process.poll() is None:
            server.process.send_signal(signal.SIGTERM)
            try:
                server.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                server.process.kill()
        print((server.folder / "serve.log").read_text(errors="replace")[-4000:])
