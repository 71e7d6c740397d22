"""Celeriac: a task queue for long-running work that speaks Celery's protocol.

Tasks stay ordinary Celery tasks. ``celeriac worker -A proj`` runs them in place of ``celery -A proj worker``.
"""

__version__ = "0.1.0"
