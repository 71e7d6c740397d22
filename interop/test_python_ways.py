"""An application whose Redis is reached by TLS, or by way of Sentinels, said as Celery has it: in the address, or beside it."""

import subprocess
import sys

import pytest
import redis as redis_py

from conftest import PATIENCE, Child, answers, free_port, open_place, until
from test_python_app import NODE, reachable_by
from test_python_start import command, worker

pytestmark = pytest.mark.celeriac

SOURCE = """
import os
import ssl
import time

from celery import Celery

app = Celery("found", broker={broker!r}, backend={backend!r})
app.conf.update({settings})


@app.task(name="found.add")
def add(x, y):
    return x + y


@app.task(name="found.holds", acks_late=True)
def holds(gate):
    with open(os.environ["INTEROP_NOTES"], "a") as notes:
        notes.write("begun\\n")
    while not os.path.exists(gate):
        time.sleep(0.02)
    return "held"
"""


@pytest.fixture
def place(server, tmp_path_factory, request):
    opened = open_place(server, tmp_path_factory, request, "ways")
    place = next(opened)
    place.reachable_by = reachable_by
    yield place
    next(opened, None)


def write(place, broker, backend=None, settings=""):
    backend = backend or broker
    (place.folder / "found.py").write_text(SOURCE.format(broker=broker, backend=backend, settings=settings))


def client(place, code):
    """Runs a client of the application, which goes the same way."""
    ran = subprocess.run([sys.executable, "-c", f"from found import *; {code}"], cwd=place.folder, env=place.env(),
                         capture_output=True, text=True, timeout=PATIENCE)
    assert ran.returncode == 0, ran
    return ran.stdout.strip()


def works(place):
    """A worker starts, and runs a task for Celery's client and for our own."""
    child = worker(place)
    assert child.lives(), child.text()
    assert client(place, "print(add.delay(2, 3).get(timeout=50))") == "5"
    called = command(place, "call", "found.add", "--args", "[3, 4]", "--wait")
    assert called.stdout.strip() == "7", called
    return child


class Authority:
    """An authority, and certificates that it has signed."""

    def __init__(self, folder):
        self.folder = folder
        self.ca = folder / "ca.crt"
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        self.openssl("req", "-x509", *key, "-days", "1", "-subj", "/CN=an authority", "-keyout", "ca.key", "-out", self.ca)
        self.openssl("req", *key, "-subj", "/CN=server", "-keyout", "server.key", "-out", "server.csr")
        (folder / "ext").write_text("subjectAltName=IP:127.0.0.1\n")
        self.openssl("x509", "-req", "-in", "server.csr", "-CA", self.ca, "-CAkey", "ca.key", "-CAcreateserial", "-days",
                     "1", "-extfile", "ext", "-out", "server.crt")

    def openssl(self, *arguments):
        subprocess.run(["openssl", *map(str, arguments)], cwd=self.folder, check=True, capture_output=True)


class Redis:
    """A server of one's own, with options of its own."""

    def __init__(self, folder, *options, port=None, **client):
        self.port = port or free_port()
        folder.mkdir()
        self.child = Child("redis", folder / "log", ["redis-server", *options, "--dir", folder])
        self.redis = redis_py.Redis("127.0.0.1", self.port, **client)
        try:
            until(lambda: answers(self.redis), "redis-server does not answer")
        except BaseException:
            self.child.kill()
            raise


@pytest.fixture(scope="module")
def secure(tmp_path_factory):
    """A Redis that speaks nothing but TLS."""
    folder = tmp_path_factory.mktemp("tls")
    authority, port = Authority(folder), free_port()
    server = Redis(folder / "redis", "--port", 0, "--bind", "127.0.0.1", "--save", "", "--tls-port", port,
                   "--tls-cert-file", folder / "server.crt", "--tls-key-file", folder / "server.key",
                   "--tls-ca-cert-file", authority.ca, "--tls-auth-clients", "no",
                   port=port, ssl=True, ssl_ca_certs=str(authority.ca))
    server.authority = authority
    server.address = f"127.0.0.1:{port}/0"
    yield server
    server.child.kill()


def trusting(server, more=""):
    ssl = f"{{'ssl_cert_reqs': ssl.CERT_REQUIRED, 'ssl_ca_certs': {str(server.authority.ca)!r}{more}}}"
    return f"broker_use_ssl={ssl}, redis_backend_use_ssl={ssl}"


@pytest.mark.parametrize("scheme", ["rediss", "redis"])
def test_tls_as_the_settings_say(place, secure, scheme):
    write(place, f"{scheme}://{secure.address}", settings=trusting(secure))
    child = works(place)
    assert 'setting="broker_use_ssl"' not in child.text()


def test_tls_as_the_address_says(place, secure):
    write(place, f"rediss://{secure.address}?ssl_cert_reqs=required&ssl_ca_certs={secure.authority.ca}")
    works(place)


def test_an_address_from_the_command_line_is_reached_as_the_settings_say(place, secure):
    write(place, "redis://127.0.0.1:1/0", settings=trusting(secure))
    address = f"rediss://{secure.address}"
    child = worker(place, more=["-b", address, "--result-backend", address])
    assert child.lives(), child.text()
    called = command(place, "-b", address, "--result-backend", address, "call", "found.add", "--args", "[3, 4]", "--wait")
    assert called.stdout.strip() == "7", called


@pytest.mark.parametrize("settings, code, parts", [
    ("broker_use_ssl={'ssl_cert_reqs': ssl.CERT_NONE}", 3, ["ssl_cert_reqs=none", "ssl_ca_certs=FILE", "broker_use_ssl"]),
    ("broker_use_ssl={'ssl_check_hostname': False}", 2, ["broker_use_ssl: ssl_check_hostname", "certificate name the host"]),
    ("broker_use_ssl={'ssl_ca_path': '/etc'}", 2, ["broker_use_ssl: ssl_ca_path", "ssl_ca_certs"]),
    ("broker_use_ssl={'ssl_ca_certs': '/no/such/file'}", 3, ["ssl_ca_certs=/no/such/file", "broker_use_ssl"]),
    ("", 3, ["trust", "ssl_ca_certs"]),
])
def test_what_would_not_be_safe_or_is_not_known_is_refused_at_the_start(place, secure, settings, code, parts, tmp_path):
    write(place, f"rediss://{secure.address}", backend=f"file://{tmp_path}", settings=settings)
    ran = command(place, "worker")
    assert ran.returncode == code, ran
    for part in parts:
        assert part in ran.stderr, ran.stderr


class Watched:
    """A master, a replica and a Sentinel."""

    def __init__(self, folder):
        options = ["--bind", "127.0.0.1", "--save", ""]
        ports = [free_port() for _ in range(3)]
        self.master = Redis(folder / "master", *options, "--port", ports[0], "--repl-diskless-sync-delay", 0,
                            port=ports[0])
        self.replica = Redis(folder / "replica", *options, "--port", ports[1], "--replicaof", f"127.0.0.1 {ports[0]}",
                             port=ports[1])
        # A Sentinel that does not find it at its start looks again after ten seconds.
        until(lambda: self.replica.redis.info("replication")["master_link_status"] == "up", "the replica does not follow")
        (folder / "sentinel.conf").write_text(
            f"port {ports[2]}\nbind 127.0.0.1\nsentinel monitor tasks 127.0.0.1 {ports[0]} 1\n"
            "sentinel down-after-milliseconds tasks 1000\nsentinel failover-timeout tasks 5000\n")
        self.sentinel = Redis(folder / "sentinel", folder / "sentinel.conf", "--sentinel", port=ports[2])
        until(lambda: self.sentinel.redis.sentinel_slaves("tasks"), "the Sentinel does not know the replica")
        # The other one is dead. Celery's clients would wait for a first one for seconds, each time.
        self.address = f"sentinel://127.0.0.1:{ports[2]}/0;sentinel://127.0.0.1:1/0"

    def fail_over(self, meanwhile):
        """The master dies when the replica has all that it has; returns when the other is in its place."""
        assert self.master.redis.wait(1, PATIENCE * 1000) == 1
        self.master.child.kill()
        meanwhile()

        def promoted():
            # Celery's clients want one that the Sentinel has no doubts about.
            state = self.sentinel.redis.sentinel_master("tasks")
            return state["port"] == self.replica.port and state["is_master"] and not state["is_odown"]

        until(promoted, "the replica is not made the master")

    def end(self):
        for server in (self.sentinel, self.replica, self.master):
            server.child.kill()


@pytest.fixture
def watched(tmp_path):
    watched = Watched(tmp_path)
    yield watched
    watched.end()


# Celery's backend, which stores the results, gives up at once otherwise.
BY_SENTINEL = ("broker_transport_options={'master_name': 'tasks'}, result_backend_transport_options={'master_name': 'tasks'}, "
               "result_backend_always_retry=True")


def test_by_way_of_sentinels_through_a_failover(place, watched, tmp_path):
    write(place, watched.address, settings=BY_SENTINEL)
    child = works(place)
    gate = tmp_path / "gate"
    sent = client(place, f"print(holds.delay({str(gate)!r}).id)")
    place.noted("begun")
    # It ends while there is no master.
    watched.fail_over(gate.touch)
    assert client(place, f"print(app.AsyncResult({sent!r}).get(timeout=50))") == "held"
    assert place.notes() == ["begun"]
    assert client(place, "print(add.delay(4, 5).get(timeout=50))") == "9"
    assert child.stop() == 0


def test_sentinels_without_the_name_of_a_master_are_refused(place):
    write(place, "sentinel://127.0.0.1:1/0")
    ran = command(place, "worker")
    assert ran.returncode == 3 and "master_name" in ran.stderr, ran.stderr
