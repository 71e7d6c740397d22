"""The page on the move from Celery leaves nothing out."""

import pathlib
import re

import pytest
from celery.app.defaults import NAMESPACES, flatten
from celery.bin.celery import celery
from celery.bin.worker import worker

PAGE = (pathlib.Path(__file__).parent.parent / "docs" / "migrate-from-celery.md").read_text()
NAMED = set(re.findall(r"`([^`]+)`", PAGE))


@pytest.mark.parametrize("setting", sorted(name for name, _ in flatten(NAMESPACES)))
def test_each_setting_has_a_verdict(setting):
    families = [name[:-1] for name in NAMED if name.endswith("*")]
    assert setting in NAMED or any(setting.startswith(family) for family in families)


@pytest.mark.parametrize("command", sorted(celery.commands))
def test_each_command_has_a_verdict(command):
    words = {word for name in NAMED for word in name.split()}
    assert command in words


@pytest.mark.parametrize("option", [min(p.opts, key=len) for p in worker.params if p.opts[0] != "--help"])
def test_each_option_of_the_worker_has_a_verdict(option):
    words = {word for name in NAMED for word in name.split()}
    others = {o for p in worker.params if option in p.opts for o in p.opts}
    assert others & words, others
