"""The Celery application with a visibility timeout of two seconds: its workers restore what nobody has vouched for that long."""

import os

from proj import make_app

app = make_app(os.environ["INTEROP_REDIS"], broker_transport_options={
    "visibility_timeout": 2,
    # It looks all the time.
    "unacked_restore_interval": 0.2,
    "unacked_restore_throttle": 1,
})
