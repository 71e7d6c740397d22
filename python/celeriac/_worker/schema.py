"""What a type hint says of a value, as JSON Schema: for documentation, and for what can be told wrong for certain.

A hint that means nothing in JSON gives the empty schema, which allows everything.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import datetime
import decimal
import enum
import inspect
import json
import pathlib
import sys
import types
import typing
import uuid
from typing import Any

#: More parts than this, and a hint is too large to be described: models nested many times over, for one.
_PARTS_MAX = 2_000
#: What stands around a hint and changes nothing in the value.
_AROUND = tuple(
    getattr(typing, name) for name in ("Annotated", "ClassVar", "Final", "NotRequired", "ReadOnly", "Required")
    if hasattr(typing, name)
)  # fmt: skip
_ALIAS = getattr(typing, "TypeAliasType", ())
#: In this order: a bool is an int to Python, and a datetime a date.
_CLASSES: tuple[tuple[type, dict[str, Any]], ...] = (
    (bool, {"type": "boolean"}),
    (int, {"type": "integer"}),
    (float, {"type": "number"}),
    (str, {"type": "string"}),
    (bytes, {"type": "string"}),
    (decimal.Decimal, {"anyOf": [{"type": "number"}, {"type": "string"}]}),
    (datetime.datetime, {"type": "string", "format": "date-time"}),
    (datetime.date, {"type": "string", "format": "date"}),
    (datetime.time, {"type": "string", "format": "time"}),
    (uuid.UUID, {"type": "string", "format": "uuid"}),
    (pathlib.PurePath, {"type": "string", "format": "path"}),
    (tuple, {"type": "array"}),
    (list, {"type": "array"}),
    (set, {"type": "array", "uniqueItems": True}),
    (frozenset, {"type": "array", "uniqueItems": True}),
    (dict, {"type": "object"}),
)
#: What is data in a schema, and not a schema.
_DATA = ("const", "default", "enum", "examples", "required")


class TooLarge(Exception):
    """There is more to a hint than is described."""


class Reader:
    """Reads the hint of one parameter."""

    def __init__(self) -> None:
        #: More may be accepted than the schema says: it is another library's, which converts what it is given.
        self.loose = False
        self._parts = 0
        self._within: list[Any] = []

    def read(self, hint: Any) -> dict[str, Any]:
        """The schema of a hint.

        Raises :class:`TooLarge`, and whatever the code of a user's classes does.
        """
        self._count()
        if hint is None or hint is type(None):
            return {"type": "null"}
        if isinstance(hint, typing.NewType):
            return self.read(hint.__supertype__)
        if isinstance(hint, typing.TypeVar):
            return self.read(hint.__bound__) if hint.__bound__ is not None else {}
        if isinstance(hint, _ALIAS):
            return self._once(hint, lambda: self.read(hint.__value__))
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if origin in _AROUND or origin is typing.Annotated:
            return self.read(arguments[0])
        if origin is typing.Literal:
            return _one_of(arguments)
        if origin is typing.Union or origin is types.UnionType:
            return _any_of([self.read(argument) for argument in arguments])
        if inspect.isclass(origin):
            return self._generic(origin, arguments)
        return self._class(hint) if inspect.isclass(hint) else {}

    def _count(self) -> None:
        self._parts += 1
        if self._parts > _PARTS_MAX:
            raise TooLarge(f"a hint has more than {_PARTS_MAX} parts")

    def _once(self, what: Any, read: Any) -> dict[str, Any]:
        """Reads what may hold itself, which is not described a second time."""
        if any(outer is what for outer in self._within):
            return {}
        self._within.append(what)
        try:
            return read()
        finally:
            self._within.pop()

    def _generic(self, origin: type, arguments: tuple[Any, ...]) -> dict[str, Any]:
        if issubclass(origin, tuple):
            if len(arguments) == 2 and arguments[1] is Ellipsis:
                return self._array(arguments[0])
            items = [self.read(argument) for argument in arguments]
            return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
        if issubclass(origin, collections.abc.Set):
            return self._array(arguments[0]) | {"uniqueItems": True}
        if issubclass(origin, collections.abc.Mapping):
            values = self.read(arguments[-1])
            return {"type": "object", "additionalProperties": values} if values else {"type": "object"}
        if issubclass(origin, collections.abc.Iterable) and len(arguments) == 1:
            return self._array(arguments[0])
        return self._class(origin)

    def _array(self, item: Any) -> dict[str, Any]:
        items = self.read(item)
        return {"type": "array", "items": items} if items else {"type": "array"}

    def _class(self, kind: Any) -> dict[str, Any]:
        if issubclass(kind, enum.Enum):
            return _one_of(tuple(kind))
        model = getattr(sys.modules.get("pydantic"), "BaseModel", None)
        if inspect.isclass(model) and issubclass(kind, model):
            self.loose = True
            told = kind.model_json_schema(ref_template="#/$defs/{model}")
            return self._inlined(told, told.pop("$defs", {}), ())
        if hasattr(kind, "__required_keys__"):
            required = kind.__required_keys__
            return self._once(kind, lambda: self._fields(kind, list(kind.__annotations__), required)) or {"type": "object"}
        if dataclasses.is_dataclass(kind):
            fields = [field for field in dataclasses.fields(kind) if field.init]
            required = {field.name for field in fields
                        if field.default is field.default_factory is dataclasses.MISSING}  # fmt: skip
            names = [field.name for field in fields]
            return self._once(kind, lambda: self._fields(kind, names, required)) or {"type": "object"}
        return next((dict(schema) for known, schema in _CLASSES if issubclass(kind, known)), {})

    def _fields(self, kind: Any, names: list[str], required: Any) -> dict[str, Any]:
        hints = typing.get_type_hints(kind, include_extras=True)
        schema: dict[str, Any] = {"title": kind.__name__, "type": "object"}
        schema["properties"] = {name: self.read(hints.get(name, Any)) for name in names}
        if needed := [name for name in names if name in required]:
            schema["required"] = needed
        return schema

    def _inlined(self, node: Any, defs: dict[str, Any], within: tuple[str, ...]) -> Any:
        """A schema of pydantic's with its definitions where they are used: it becomes part of another document."""
        self._count()
        if isinstance(node, list):
            return [self._inlined(item, defs, within) for item in node]
        if not isinstance(node, dict):
            return node
        found: dict[str, Any] = {}
        reference = node.get("$ref")
        if isinstance(reference, str):
            name = reference.removeprefix("#/$defs/")
            if name in defs and name not in within:
                found = self._inlined(defs[name], defs, (*within, name))
        for key, value in node.items():
            # Its mapping points at the definitions.
            is_discriminator = key == "discriminator" and isinstance(value, dict) and "propertyName" in value
            if not (key == "$ref" and value is reference and isinstance(value, str)) and not is_discriminator:
                found[key] = value if key in _DATA and not isinstance(value, dict) else self._inlined(value, defs, within)
        return found


def plain(value: Any) -> Any:
    """A value as JSON holds it, a member of an enumeration as its value. Raises :class:`ValueError` for any other."""
    if isinstance(value, enum.Enum):
        value = value.value
    if value is None or isinstance(value, (bool, int, float, str)):
        # With a type of its own it might be written in a way of its own.
        json.dumps(value, allow_nan=False)
        return value
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return {name: plain(item) for name, item in value.items()}
    raise ValueError(f"{type(value).__name__} is not JSON")


def nullable(schema: dict[str, Any]) -> dict[str, Any]:
    """The same, or null."""
    return _any_of([schema, {"type": "null"}])


def _one_of(values: tuple[Any, ...]) -> dict[str, Any]:
    try:
        return {"enum": [plain(value) for value in values]} if values else {}
    except ValueError:
        return {}


def _any_of(schemas: list[dict[str, Any]]) -> dict[str, Any]:
    if not all(schemas):
        return {}
    different: list[dict[str, Any]] = []
    for schema in schemas:
        for one in schema["anyOf"] if schema.keys() == {"anyOf"} else [schema]:
            if one not in different:
                different.append(one)
    return different[0] if len(different) == 1 else {"anyOf": different}
