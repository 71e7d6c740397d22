"""A Django project and its one application, as Celery's manual has them."""

from .celery import app as celery_app

__all__ = ("celery_app",)
