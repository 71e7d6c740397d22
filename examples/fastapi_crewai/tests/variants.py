"""The example's application, with tasks beside it that tests need, and settings that they change."""

import dataclasses
import json
import os
import signal
import sys
import time

import celeriac
import celeriac.crewai
from crew import newsroom
from newsroom_app import app

app.conf.update(json.loads(os.environ.get("NEWSROOM_SETTINGS", "{}")))
NOTES = os.environ["NEWSROOM_NOTES"]


def note(text):
    with open(NOTES, "a") as notes:
        notes.write(text + "\n")


note(f"import {os.getpid()} {'crewai' in sys.modules}")
note(f"handler {getattr(signal.getsignal(signal.SIGTERM), '__module__', None)}")


@app.task(name="newsroom.early", acks_late=False)
def early(topic):
    note(f"begin {os.getpid()}")
    return celeriac.crewai.kickoff(newsroom(topic)).raw


@app.task(name="newsroom.awaited")
async def awaited(topic):
    return (await celeriac.crewai.akickoff(newsroom(topic))).raw


@app.task(name="newsroom.counted")
def counted(topic):
    """As somebody writes it who wants the figures: how many tokens, by CrewAI and by celeriac."""
    with celeriac.crewai.stream() as usage:
        output = newsroom(topic).kickoff()
    figures = {field.name: getattr(usage, field.name) for field in dataclasses.fields(usage) if field.name[0] != "_"}
    return {"celeriac": figures, "crewai": output.token_usage.total_tokens}


@app.task(name="newsroom.replayed")
def replayed(topic):
    """A crew, and its last task once more, by what CrewAI keeps of the others."""
    crew = newsroom(topic)
    celeriac.crewai.kickoff(crew)
    return crew.replay(str(crew.tasks[-1].id)).raw


@app.task(name="newsroom.who")
def who():
    return os.getpid()


@app.task(name="newsroom.clocked")
def clocked(records):
    """Says what time it is, as often as a model writes."""
    for _ in range(records):
        celeriac.emit("clock", time.time())
        time.sleep(0.02)
