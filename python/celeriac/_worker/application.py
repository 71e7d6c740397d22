"""Loads the application as ``celery worker`` does, and describes it to the supervisor."""

from __future__ import annotations

import inspect
import os
import platform
import sys
from collections.abc import Iterator
from types import CodeType, ModuleType
from typing import Any

from . import signature, store, wire

#: What the supervisor asks of each task.
_TASK_OPTIONS = (
    "acks_late", "acks_on_failure", "acks_on_failure_or_timeout", "acks_on_timeout", "default_retry_delay", "expires",
    "ignore_result", "max_retries", "priority", "queue", "rate_limit", "reject_on_worker_lost", "retry_on_worker_lost",
    "soft_time_limit", "time_limit", "track_started",
)  # fmt: skip
#: The settings it goes by.
_SETTINGS = (
    "enable_utc", "result_expires", "result_extended", "task_acks_late", "task_acks_on_failure_or_timeout",
    "task_create_missing_queues", "task_default_exchange", "task_default_priority", "task_default_queue",
    "task_ignore_result", "task_reject_on_worker_lost", "task_send_sent_event", "task_soft_time_limit",
    "task_store_errors_even_if_ignored", "task_time_limit", "task_track_started", "timezone", "worker_autoscaler",
    "worker_concurrency", "worker_deduplicate_successful_tasks", "worker_direct", "worker_disable_rate_limits",
    "worker_enable_remote_control", "worker_lost_wait", "worker_max_memory_per_child", "worker_max_tasks_per_child",
    "worker_memory_limit_per_child",
    "worker_pool", "worker_pool_restarts", "worker_prefetch_multiplier", "worker_send_task_events",
    "worker_soft_shutdown_timeout", "worker_state_db", "worker_timer", "worker_consumer", "worker_agent",
    "worker_cancel_long_running_tasks_on_connection_loss", "broker_use_ssl",
    "redis_backend_use_ssl",
)  # fmt: skip
#: What has a task stream, or keep steps, by the module it is of.
_STREAMS = {"celeriac._task": ("token", "step"), "celeriac.crewai": (), "celeriac.langgraph": ()}
_STREAMS_IN_PACKAGE = frozenset(("token", "step", "crewai", "langgraph"))


class Worker:
    """What stands for ``celery.apps.worker.Worker`` where signals name their sender."""

    def __init__(self, app: Any, hostname: str, options: dict[str, Any]) -> None:
        self.app = app
        self.hostname = hostname
        self.pool_cls = options.get("pool") or app.conf.worker_pool or "prefork"
        self.concurrency = options.get("concurrency")
        self.loglevel = options.get("loglevel")
        self.logfile = options.get("logfile")
        self.pidfile = options.get("pidfile")
        self.options = options
        self.own_broker: str | None = None
        self.pid = os.getpid()
        # A consumer has these; `worker_ready` names one.
        self.controller = self
        self.timer = None


def load(options: dict[str, Any]) -> Worker:
    """Imports the application and makes it ready to run tasks, once in a process image."""
    workdir = options.get("workdir")
    if workdir:
        os.chdir(workdir)
        sys.path.insert(0, os.getcwd())
    for name, value in (options.get("environment") or {}).items():
        os.environ[name] = value
    from celery import _state, platforms, signals
    from celery.app import trace
    from celery.app.utils import find_app

    hostname = options["hostname"]
    app = find_app(options["app"])
    own_broker = store.lead_home(app)
    app.loader.init_worker()
    worker = Worker(app, hostname, options)
    worker.own_broker = own_broker
    trace.setup_worker_optimizations(app, hostname)
    signals.celeryd_init.send(sender=hostname, instance=worker, conf=app.conf, options=options)
    if options.get("queues"):
        app.amqp.queues.select(options["queues"])
    if options.get("exclude_queues"):
        app.amqp.queues.deselect(options["exclude_queues"])
    for module in options.get("include") or ():
        app.loader.import_task_module(module)
    app.finalize()
    if options.get("describe"):
        return worker
    # Refuses to run as root what decodes pickle, as there.
    platforms.check_privileges(app.conf.accept_content)
    signals.worker_init.send(sender=worker)
    # Otherwise every `delay` in a task would subscribe to a result that nobody there may wait for.
    _state._set_task_join_will_block(True)
    _start_logging(worker)
    # As there: this may change the queues once -Q is applied.
    signals.celeryd_after_setup.send(sender=hostname, instance=worker, conf=app.conf)
    trace.setup_worker_optimizations(app, hostname)
    return worker


def _start_logging(worker: Worker) -> None:
    app, conf = worker.app, worker.app.conf
    from celery.utils.log import mlevel

    level = mlevel(worker.loglevel or "WARNING")
    worker.loglevel = level
    app.log.setup(
        level,
        worker.logfile,
        redirect_stdouts=bool(conf.worker_redirect_stdouts),
        redirect_level=conf.worker_redirect_stdouts_level,
        hostname=worker.hostname,
    )


def manifest(worker: Worker) -> dict[str, Any]:
    """What the supervisor is told of the application."""
    import celery

    app, conf = worker.app, worker.app.conf
    tasks = {name: _describe(task) for name, task in sorted(app.tasks.items())}
    undescribed: dict[str, str] = {}
    if worker.options.get("signatures"):
        found, undescribed = signature.describe_all(sorted(app.tasks.items()))
        for name, told in found.items():
            tasks[name]["signature"] = told
    return {
        "version": wire.VERSION,
        "celery": celery.__version__,
        "python": platform.python_version(),
        "pid": os.getpid(),
        "app": f"{app.main or '__main__'}:{id(app):#x}",
        "broker_url": _broker_url(app),
        "names_broker": _names_broker(conf),
        "names_backend": bool(conf.result_backend),
        "own_broker": worker.own_broker,
        "result_backend": _result_backend(app),
        "result_backend_shown": _shown_backend(app),
        "broker_transport_options": _plain(dict(conf.broker_transport_options or {})),
        "result_backend_transport_options": _plain(dict(conf.result_backend_transport_options or {})),
        "leaves_results": _leaves_results(app),
        "birth_patience": _own(conf, "worker_proc_alive_timeout"),
        "queues": list(app.amqp.queues.consume_from),
        "routes": _routes(conf),
        "conf": {name: _plain(conf.get(name)) for name in _SETTINGS},
        "tasks": tasks,
        "undescribed": undescribed,
        "beat_schedule": sorted(map(str, conf.beat_schedule or {})),
    }


def _broker_url(app: Any) -> str | None:
    url = app.conf.broker_read_url or app.conf.broker_url
    if isinstance(url, (list, tuple)):
        url = ";".join(url)
    return url or app.connection_for_read().as_uri(include_password=True)


def _names_broker(conf: Any) -> bool:
    """Whether the application says where messages are; Celery would look for RabbitMQ on this machine."""
    return bool(conf.broker_read_url or conf.get("broker_host") or conf.get("broker_transport"))


def _own(conf: Any, name: str) -> Any:
    """A setting that the application has made itself; the last of the maps are Celery's defaults."""
    return next((_plain(known[name]) for known in conf.maps[:-1] if name in known), None)


def _result_backend(app: Any) -> str | None:
    backend = app.conf.result_backend
    if backend is None and app.conf.broker_url == store.ADDRESS:
        return store.ADDRESS
    return backend if isinstance(backend, str) else None


def _shown_backend(app: Any) -> str:
    try:
        return str(app.backend.as_uri())
    except Exception as why:  # a backend of one's own may not know
        return f"{app.conf.result_backend} ({why})"


def _leaves_results(app: Any) -> bool:
    """Whether results can be stored by the supervisor: a plain Redis backend, whose results are JSON as they stand."""
    from celery.backends.redis import RedisBackend

    conf = app.conf
    plain = not any(
        (
            conf.get("result_compression"),
            conf.get("result_failure_expires"),
            conf.get("result_backend_transport_options"),
            conf.get("broker_transport_options", {}).get("global_keyprefix"),
            conf.get("worker_deduplicate_successful_tasks"),
            not conf.get("enable_utc"),
        )
    )
    return plain and type(app.backend) is RedisBackend and app.backend.serializer == "json"


def _routes(conf: Any) -> list[dict[str, Any]]:
    """The routes that can be told in plain values; whatever Python sends goes by the application's own router."""
    found = []
    routes = conf.task_routes
    maps = routes if isinstance(routes, (list, tuple)) else [routes]
    for entries in maps:
        pairs = entries.items() if isinstance(entries, dict) else ()
        for pattern, route in pairs:
            queue = route.get("queue") if isinstance(route, dict) else route
            priority = route.get("priority") if isinstance(route, dict) else None
            name = getattr(queue, "name", queue)
            if isinstance(pattern, str) and isinstance(name, str):
                found.append({"pattern": pattern, "queue": name, "priority": priority})
    return found


def _describe(task: Any) -> dict[str, Any]:
    found = {name: _plain(getattr(task, name, None)) for name in _TASK_OPTIONS}
    # A queue may be given as what kombu makes of its name.
    queue = getattr(task, "queue", None)
    found["queue"] = getattr(queue, "name", queue)
    if found["acks_on_failure"] is None:
        found["acks_on_failure"] = found["acks_on_failure_or_timeout"]
    if found["acks_on_timeout"] is None:
        found["acks_on_timeout"] = found["acks_on_failure_or_timeout"]
    return {name: value for name, value in found.items() if value is not None}


def streams_early(app: Any) -> list[str]:
    """The tasks that stream or keep steps, as their own code shows, and are acknowledged early."""
    return sorted(name for name, task in app.tasks.items() if not task.acks_late and _streams(task))


def _streams(task: Any) -> bool:
    function = inspect.unwrap(getattr(task.run, "__func__", task.run))
    code = getattr(function, "__code__", None)
    if code is None:
        return False
    names = set(_names(code))
    # What the function imports for itself it names as well.
    return any(_is_ours(name, function.__globals__.get(name, name), names) for name in names)


def _is_ours(name: str, found: Any, names: set[str]) -> bool:
    module = found.__name__ if isinstance(found, ModuleType) else found if found is name else None
    if module is not None:
        return module in _STREAMS or (module == "celeriac" and bool(names & _STREAMS_IN_PACKAGE))
    functions = _STREAMS.get(getattr(found, "__module__", None) or "")
    return functions is not None and (not functions or found.__name__ in functions)


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for part in code.co_consts:
        if isinstance(part, CodeType):
            yield from _names(part)


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if hasattr(value, "total_seconds"):
        return value.total_seconds()
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    return repr(value)
