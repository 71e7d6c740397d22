"""Celery's own beat beside a worker, and gone with it: what ``celery -A proj beat`` runs, in a process that asks the system to
be told when its supervisor is gone.
"""

from __future__ import annotations

import signal
import sys

from . import system


def main() -> None:
    """Runs beat: the arguments are the supervisor's process id, and those of ``celery``."""
    # As an operator would: it writes down when each entry ran last.
    system.die_with_parent(int(sys.argv.pop(1)), signal.SIGTERM)
    from celery.app import backends
    from celery.bin.celery import main as celery

    from .. import _kombu  # noqa: F401  (registers the transport)

    backends.BACKEND_ALIASES.setdefault("celeriac", "celeriac.backend:Backend")
    sys.argv[0] = "celery"
    celery()
