"""A Celery application as one writes it for `celeriac serve -A shop`: it names no broker, and has hints."""

import datetime
import os
import pathlib
import threading
import time
from typing import Literal

import pydantic
from celery import Celery

import celeriac

app = Celery("shop")


class Item(pydantic.BaseModel):
    name: str
    price: float = 0


def wait_for(path):
    deadline = time.monotonic() + 60
    while not pathlib.Path(path).exists() and time.monotonic() < deadline:
        time.sleep(0.01)


if os.environ.get("SHOP_THREAD"):
    # A library that leaves a thread behind when it is imported.
    threading.Thread(target=wait_for, args=(os.environ["SHOP_THREAD"],)).start()


@app.task
def add(x: int, y: int = 2) -> int:
    """Adds two numbers.

    Both are *whole*.
    """
    return x + y


@app.task(queue="slow")
def count(items: list[Item], when: datetime.date | None = None) -> int:
    return len(items)


@app.task(acks_late=True)
def report(topic: str, depth: Literal["quick", "deep"] = "quick") -> str:
    celeriac.progress(1, 2, topic=topic)
    celeriac.token("he")
    celeriac.token("llo")
    celeriac.emit("found", {"depth": depth})
    return topic.upper()


@app.task
def endless():
    celeriac.token("begun")
    while True:
        time.sleep(0.1)


@app.task
def hold(path: str) -> int:
    celeriac.token("begun")
    wait_for(path)
    return os.getpid()


@app.task(name="shop/join {all}")
def join(first, /, *more: str):
    return "-".join([first, *more])


@app.task(typing=False)
def unchecked(x: int):
    return x
