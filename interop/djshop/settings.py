import os

SECRET_KEY = "of no use elsewhere"
INSTALLED_APPS = ["djshop"]
# Connections are kept for as long as they can be: it is Celery's fix-up that closes them around each task.
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ["INTEROP_DATABASE"],
                         "CONN_MAX_AGE": None, "OPTIONS": {"timeout": 30}}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
TIME_ZONE = "Europe/Berlin"

CELERY_BROKER_URL = CELERY_RESULT_BACKEND = os.environ["INTEROP_REDIS"]
CELERY_TASK_DEFAULT_QUEUE = "djshop"
CELERY_TASK_ACKS_LATE = True
