"""Celeriac: a task queue for long-running work that speaks Celery's protocol.

Tasks stay ordinary Celery tasks. ``celeriac worker -A proj`` runs them in place of ``celery -A proj worker``, and the functions
here are for use inside of them:

>>> import celeriac
>>> def digest(pages):  # an ordinary task
...     for number, page in enumerate(pages, 1):
...         celeriac.step(f"page {number}", str.upper, page)
...         celeriac.progress(number, len(pages))

Everywhere else, as under ``celery worker`` or in a unit test, they have fallbacks that do no harm; each says which.
"""

from . import _kombu  # noqa: F401  (kombu is told of the transport)
from ._task import StepError, TaskStopped, cancelled, emit, progress, step, token

__all__ = ["StepError", "TaskStopped", "cancelled", "emit", "progress", "step", "token"]
__version__ = "0.1.0"
