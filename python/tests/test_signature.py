"""What is told of a task's arguments: hints as JSON Schema, docstrings, and what is left out."""

import dataclasses
import datetime
import decimal
import enum
import functools
import json
import pathlib
import types
import typing
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, NotRequired, Optional, TypedDict, Union

import pydantic
import pytest
from celery import Celery, Task

from celeriac._worker import signature

app = Celery("described", set_as_current=False)


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Opaque(enum.Enum):
    THING = object()


@dataclasses.dataclass
class Point:
    x: int
    y: float = 0.0
    tags: list[str] = dataclasses.field(default_factory=list)
    seen: bool = dataclasses.field(default=False, init=False)


@dataclasses.dataclass
class Tree:
    name: str
    below: "list[Tree]"


class Options(TypedDict):
    path: str
    deep: NotRequired[bool]


class Address(pydantic.BaseModel):
    street: str = pydantic.Field(min_length=1, description="With its number")


class Person(pydantic.BaseModel):
    """Somebody."""

    name: str
    home: Address
    others: list[Address] = []


class Node(pydantic.BaseModel):
    below: "list[Node]" = []


class Cat(pydantic.BaseModel):
    kind: Literal["cat"]


class Dog(pydantic.BaseModel):
    kind: Literal["dog"]


class Owner(pydantic.BaseModel):
    pet: Cat | Dog = pydantic.Field(discriminator="kind")


class Unlucky(pydantic.BaseModel):
    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema, handler):
        raise RuntimeError("not today")


UserId = typing.NewType("UserId", int)
Anything = typing.TypeVar("Anything")
Word = typing.TypeVar("Word", bound=str)


class Slug(str):
    pass


def takes_nothing():
    pass


STRING, INTEGER, NULL = {"type": "string"}, {"type": "integer"}, {"type": "null"}
POINT = {"title": "Point", "type": "object", "required": ["x"], "properties": {
    "x": INTEGER, "y": {"type": "number"}, "tags": {"type": "array", "items": STRING}}}  # fmt: skip


def described(function, **options):
    """What is told of a function as a task."""
    options.setdefault("name", f"t{len(app.tasks)}")
    told, missing = signature.describe(app.task(function, **options))
    json.dumps(told, allow_nan=False)
    return types.SimpleNamespace(missing=missing, **told)


def of(hint, **options):
    """The schema of one parameter's hint."""

    def run(x):
        pass

    run.__annotations__ = {"x": hint}
    told = described(run, **options)
    assert not told.missing
    return told.parameters[0]["schema"]


@pytest.mark.parametrize("hint, expected", [
    (bool, {"type": "boolean"}),
    (int, INTEGER),
    (float, {"type": "number"}),
    (str, STRING),
    (bytes, STRING),
    (Slug, STRING),
    (None, NULL),
    (datetime.datetime, STRING | {"format": "date-time"}),
    (datetime.date, STRING | {"format": "date"}),
    (datetime.time, STRING | {"format": "time"}),
    (uuid.UUID, STRING | {"format": "uuid"}),
    (pathlib.Path, STRING | {"format": "path"}),
    (decimal.Decimal, {"anyOf": [{"type": "number"}, STRING]}),
    (list, {"type": "array"}),
    (list[int], {"type": "array", "items": INTEGER}),
    (typing.List[int], {"type": "array", "items": INTEGER}),  # noqa: UP006
    (Sequence[str], {"type": "array", "items": STRING}),
    (Iterable[Any], {"type": "array"}),
    (set[int], {"type": "array", "items": INTEGER, "uniqueItems": True}),
    (frozenset, {"type": "array", "uniqueItems": True}),
    (tuple, {"type": "array"}),
    (tuple[int, ...], {"type": "array", "items": INTEGER}),
    (tuple[int, str], {"type": "array", "prefixItems": [INTEGER, STRING], "minItems": 2, "maxItems": 2}),
    (dict, {"type": "object"}),
    (dict[str, Any], {"type": "object"}),
    (dict[str, int], {"type": "object", "additionalProperties": INTEGER}),
    (Mapping[str, list[int]], {"type": "object", "additionalProperties": {"type": "array", "items": INTEGER}}),
    (Optional[int], {"anyOf": [INTEGER, NULL]}),
    (int | None, {"anyOf": [INTEGER, NULL]}),
    (Union[int, str, None], {"anyOf": [INTEGER, STRING, NULL]}),
    (Union[int, UserId], INTEGER),
    (int | Any, {}),
    (Literal["a", 1, None], {"enum": ["a", 1, None]}),
    (Literal[b"a"], {}),
    (Colour, {"enum": ["red", "blue"]}),
    (Level, {"enum": [1, 2]}),
    (Opaque, {}),
    (Annotated[int, "of eggs"], INTEGER),
    (UserId, INTEGER),
    (Anything, {}),
    (Word, STRING),
    (Point, POINT),
    (Tree, {"title": "Tree", "type": "object", "required": ["name", "below"], "properties": {
        "name": STRING, "below": {"type": "array", "items": {"type": "object"}}}}),
    (Options, {"title": "Options", "type": "object", "required": ["path"], "properties": {
        "path": STRING, "deep": {"type": "boolean"}}}),
    (Any, {}),
    (object, {}),
    (complex, {}),
    (type[int], {}),
    (Callable[[int], str], {}),
    ("Nowhere", {}),
    (7, {}),
])  # fmt: skip
def test_a_hint(hint, expected):
    assert of(hint) == expected


def test_a_model_stands_where_it_is_used():
    person = of(Person)
    address = {"title": "Address", "type": "object", "required": ["street"], "properties": {
        "street": {"title": "Street", "type": "string", "minLength": 1, "description": "With its number"}}}  # fmt: skip
    assert person["properties"]["home"] == address
    assert person["properties"]["others"]["items"] == address
    assert person["required"] == ["name", "home"] and person["description"] == "Somebody."
    # What holds itself is not followed for ever, and nothing points at what is not there.
    assert of(Node)["properties"]["below"]["items"] == {}
    owner = of(list[Owner] | None)
    assert "$ref" not in json.dumps(owner) and "mapping" not in json.dumps(owner)
    assert "dog" in json.dumps(owner)


def test_only_what_is_certain_is_told_to_be():
    def run(person: Person, count: int):
        pass

    assert [parameter.get("loose") for parameter in described(run).parameters] == [True, None]
    assert [parameter.get("loose") for parameter in described(run, pydantic=True).parameters] == [True, None]


def test_parameters_of_every_kind():
    def run(a, /, b: int, *more, c: str, d=4, **rest):
        pass

    told = described(run)
    kinds = [(parameter["name"], parameter["kind"], parameter["required"]) for parameter in told.parameters]
    assert kinds == [("a", "positional", True), ("b", "either", True), ("c", "named", True), ("d", "named", False)]
    assert (told.more_args, told.more_kwargs, told.checked) == (True, True, True)
    nothing = described(takes_nothing)
    assert (nothing.parameters, nothing.more_args, nothing.more_kwargs) == ([], False, False)


def test_defaults_that_json_has():
    odd = object()

    def run(a=1, b="x", c=(1, 2), d=None, e: int = None, f=Colour.RED, g=odd, h=float("nan"), i={"k": [1]},  # noqa: B006
            j="long" * 1000, k=10**30, l="\ud800"):  # fmt: skip
        pass

    told = described(run)
    defaults = [parameter["schema"].get("default", "none") for parameter in told.parameters]
    assert defaults == [1, "x", [1, 2], None, None, "red", "none", "none", {"k": [1]}, "none", "none", "none"]
    assert told.parameters[4]["schema"] == {"anyOf": [INTEGER, NULL], "default": None}
    assert not any(parameter["required"] for parameter in told.parameters) and not told.missing


def test_a_bound_task_is_told_without_itself():
    def run(self, x: int):
        pass

    for more in [{}, {"autoretry_for": (ValueError,)}, {"pydantic": True}]:
        told = described(run, bind=True, **more)
        assert [(parameter["name"], parameter["schema"]) for parameter in told.parameters] == [("x", INTEGER)], more
        assert told.checked, more


def test_a_task_that_is_a_class():
    class Sum(Task):
        """Adds."""

        name = "sum"

        def run(self, x: int, *, y: int = 2):
            pass

    class Changed(Sum):
        name = "changed"

        def __call__(self, *args, **kwargs):
            return self.run(1, *args, **kwargs)

    told, _ = signature.describe(app.register_task(Sum()))
    assert [parameter["name"] for parameter in told["parameters"]] == ["x", "y"]
    assert told["checked"] and told["summary"] == "Adds."
    assert not signature.describe(app.register_task(Changed()))[0]["checked"]


def test_decorators_of_the_application_s():
    def with_session(function):
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            return function("session", *args, **kwargs)

        return wrapper

    def passed_on(function):
        @functools.wraps(function)
        def wrapper(x):
            return function(x, 2)

        return wrapper

    def run(x: int, y: int):
        pass

    # Nobody knows what a decorator that takes everything hands on: Celery does not check it either.
    assert not described(with_session(run)).checked
    told = described(passed_on(run))
    assert [parameter["name"] for parameter in told.parameters] == ["x"] and told.checked


def test_a_task_that_celery_does_not_check():
    assert not described(takes_nothing, typing=False).checked


def test_docstrings():
    def run():
        """Adds numbers.

        All of them,
            in order.
        """

    told = described(run)
    assert (told.summary, told.details) == ("Adds numbers.", "All of them,\n    in order.")
    assert described(takes_nothing).summary == ""

    def long():
        pass

    long.__doc__ = "x" * 1000 + "\n" + "y" * 100_000
    told = described(long)
    assert (len(told.summary), len(told.details)) == (200, 8000)


def test_names_that_only_type_checkers_have():
    def run(x: "int", y: "Nowhere", z: "list[str]" = ()):  # noqa: F821
        pass

    assert [parameter["schema"] for parameter in described(run).parameters] == [
        INTEGER, {}, {"type": "array", "items": STRING, "default": []}]  # fmt: skip


def test_what_cannot_be_described_keeps_nothing_from_the_rest():
    big = Literal[tuple(f"choice number {number}" for number in range(5000))]
    deep = int
    for _ in range(100):
        deep = list[deep]

    @app.task(name="some.big")
    def some_big(x: big, y: int):
        pass

    @app.task(name="some.deep")
    def some_deep(x: deep):
        pass

    @app.task(name="some.unlucky")
    def some_unlucky(x: Unlucky, y: int = 1):
        pass

    @app.task(name="some.broken")
    def some_broken(x):
        pass

    some_broken.run = types.SimpleNamespace()

    @app.task(name="some.odd")
    def some_odd(x: int):
        pass

    some_odd.run.__doc__ = "\ud800"
    names = ["some.big", "some.deep", "some.unlucky", "some.broken", "some.odd", "celery.map"]
    found, left_out = signature.describe_all((name, app.tasks[name]) for name in names)
    assert list(found) == ["some.big", "some.deep", "some.unlucky"]
    schemas = {name: [parameter["schema"] for parameter in told["parameters"]] for name, told in found.items()}
    assert schemas == {"some.big": [{}, INTEGER], "some.deep": [{}], "some.unlucky": [{}, INTEGER | {"default": 1}]}
    assert list(left_out) == ["some.big", "some.deep", "some.unlucky", "some.broken", "some.odd"]
    assert "x: TooLarge" in left_out["some.big"] and "not today" in left_out["some.unlucky"]
    assert "not described" in left_out["some.broken"]
