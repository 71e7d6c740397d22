"""The Celery application, which clients and workers share. The web process imports this alone, and no agents."""

import os

from celery import Celery

URL = os.environ.get("CELERY_BROKER_URL", "redis://127.0.0.1:6379/0")
app = Celery("newsroom", broker=URL, backend=os.environ.get("CELERY_RESULT_BACKEND", URL), include=["tasks"])
# Minutes of paid work: when a worker is lost, another one goes on, with the steps that are done.
app.conf.update(task_acks_late=True, task_reject_on_worker_lost=True)
