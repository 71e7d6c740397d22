"""What tasks take, for those who call them by hand: names and hints of their parameters, and their docstrings.

Of a task that cannot be described nothing is told, and nothing is checked; it runs as any other.
"""

from __future__ import annotations

import inspect
import json
import sys
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any

from . import schema

#: A hint that takes more than this to describe is left out.
_SCHEMA_BYTES_MAX = 32 << 10
_DEFAULT_BYTES_MAX = 1 << 10
#: A task that takes more than this is not described, nor is any that comes after so much.
_TASK_BYTES_MAX = 128 << 10
_TASKS_BYTES_MAX = 8 << 20
_DEPTH_MAX = 60
_SUMMARY_MAX = 200
_DETAILS_MAX = 8_000
_KINDS: dict[inspect._ParameterKind, str] = {
    inspect.Parameter.POSITIONAL_ONLY: "positional",
    inspect.Parameter.POSITIONAL_OR_KEYWORD: "either",
    inspect.Parameter.KEYWORD_ONLY: "named",
}
#: From 3.14 on annotations are looked at when they are asked for, and names may be missing then.
_LENIENT: dict[str, Any] = {}
if sys.version_info >= (3, 14):
    import annotationlib

    _LENIENT["annotation_format"] = annotationlib.Format.FORWARDREF


def describe_all(tasks: Iterable[tuple[str, Any]]) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """What tasks take, by name; and of what is left out why."""
    found: dict[str, dict[str, Any]] = {}
    left_out: dict[str, str] = {}
    total = 0
    for name, task in tasks:
        # Celery's own are made for canvases.
        if name.startswith("celery."):
            continue
        try:
            told, missing = describe(task)
            size = _size(told)
            if size > _TASK_BYTES_MAX or total + size > _TASKS_BYTES_MAX:
                raise schema.TooLarge(f"{size} bytes for one task, {total} for those before it")
        except Exception as why:
            left_out[name] = f"not described: {type(why).__name__}: {why}"[:500]
            continue
        total += size
        found[name] = told
        if missing:
            left_out[name] = "; ".join(missing)[:500]
    return found, left_out


def describe(task: Any) -> tuple[dict[str, Any], list[str]]:
    """What a task takes; and of those of its parameters that are told by name alone why."""
    run = _own(task.run)
    signature, exact = _signature(run)
    hints = _hints(run)
    missing: list[str] = []
    parameters = []
    for parameter in signature.parameters.values():
        if parameter.kind in _KINDS:
            hint = hints.get(parameter.name, parameter.annotation)
            told, why = _parameter(parameter, hint)
            parameters.append(told)
            if why:
                missing.append(f"{parameter.name}: {why}")
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    summary, details = _documentation(task, run)
    told = {
        "summary": summary,
        "details": details,
        "parameters": parameters,
        "more_args": inspect.Parameter.VAR_POSITIONAL in kinds,
        "more_kwargs": inspect.Parameter.VAR_KEYWORD in kinds,
        "checked": exact and _is_checked(task),
    }
    return told, missing


def _own(run: Callable[..., Any]) -> Callable[..., Any]:
    """The application's own function, bound as ``run`` is, within what Celery puts around it and hands all arguments on."""
    while (inner := getattr(run, "__wrapped__", None)) is not None:
        function = getattr(run, "__func__", run)
        if not getattr(function, "__globals__", {}).get("__name__", "").startswith("celery."):
            break
        owner = getattr(run, "__self__", None)
        run = types.MethodType(inner, owner) if owner is not None and not inspect.ismethod(inner) else inner
    return run


def _signature(run: Callable[..., Any]) -> tuple[inspect.Signature, bool]:
    """The signature, and whether it is that of what is really called.

    A decorator of the application's may take anything, give arguments of its own and show the inner function's signature:
    Celery checks calls by what the decorator takes.
    """
    outer = inspect.signature(run, follow_wrapped=False, **_LENIENT)
    inner = inspect.signature(run, **_LENIENT)
    if _shape(outer) == _shape(inner):
        return inner, True
    kinds = {parameter.kind for parameter in outer.parameters.values()}
    takes_anything = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD} <= kinds
    return (inner, False) if takes_anything else (outer, True)


def _shape(signature: inspect.Signature) -> list[tuple[str, Any, bool]]:
    empty = inspect.Parameter.empty
    return [(name, found.kind, found.default is empty) for name, found in signature.parameters.items()]


def _is_checked(task: Any) -> bool:
    """Whether Celery's client would refuse arguments that do not fit; or its worker could not but fail."""
    from celery import Task

    return bool(task.typing) and (hasattr(task, "__header__") or type(task).__call__ is Task.__call__)


def _hints(run: Callable[..., Any]) -> dict[str, Any]:
    function = inspect.unwrap(run)
    function = getattr(function, "__func__", function)
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception:  # one of them names what is imported for type checkers alone
        return _hints_one_by_one(function)


def _hints_one_by_one(function: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    try:
        notes = dict(function.__annotations__)
    except Exception:  # the signature has them as far as they can be told
        return {}
    for name, note in notes.items():

        def alone() -> None: ...

        alone.__annotations__ = {name: note}
        try:
            found |= typing.get_type_hints(alone, getattr(function, "__globals__", {}), include_extras=True)
        except Exception:
            found[name] = inspect.Parameter.empty
    return found


def _parameter(parameter: inspect.Parameter, hint: Any) -> tuple[dict[str, Any], str]:
    told: dict[str, Any] = {"name": parameter.name, "kind": _KINDS[parameter.kind]}
    has_default = parameter.default is not inspect.Parameter.empty
    told["required"] = not has_default
    why = ""
    reader = schema.Reader()
    try:
        found = reader.read(hint) if hint is not inspect.Parameter.empty else {}
        if found and parameter.default is None:
            # As `x: int = None` is often written and always meant.
            found = schema.nullable(found)
        if (size := _size(found)) > _SCHEMA_BYTES_MAX:
            raise schema.TooLarge(f"a schema of {size} bytes")
    except Exception as error:
        found, why = {}, f"{type(error).__name__}: {error}"
    if has_default:
        try:
            default = schema.plain(parameter.default)
            if _size(default) <= _DEFAULT_BYTES_MAX:
                found = found | {"default": default}
        except Exception:  # it has none that could be shown
            pass
    told["schema"] = found
    if reader.loose:
        told["loose"] = True
    return told, why


def _documentation(task: Any, run: Any) -> tuple[str, str]:
    text = getattr(run, "__doc__", None) or type(task).__doc__
    if not isinstance(text, str):
        return "", ""
    summary, _, details = inspect.cleandoc(text).partition("\n")
    return summary.strip()[:_SUMMARY_MAX], details.strip()[:_DETAILS_MAX]


def _size(value: Any) -> int:
    """How many bytes it is written in. Raises where the other side could not read it: it is not JSON, not UTF-8, too deep."""
    _check(value, 0)
    return len(json.dumps(value, allow_nan=False, ensure_ascii=False).encode())


def _check(value: Any, depth: int) -> None:
    if depth > _DEPTH_MAX:
        raise schema.TooLarge(f"more than {_DEPTH_MAX} levels")
    if isinstance(value, int) and value.bit_length() > 63:
        raise ValueError("a number of more than 63 bits")
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check(part, depth + 1)
