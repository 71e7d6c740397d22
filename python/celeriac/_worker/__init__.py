"""The Python half of ``celeriac worker``: what its supervisor, a program in Rust, starts and talks to.

``zygote`` imports the application once and forks; ``child`` is what is forked and runs tasks with Celery's own tracer;
``wire`` is how they talk. Nothing here is for applications to import.
"""
