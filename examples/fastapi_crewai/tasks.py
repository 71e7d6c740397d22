"""The newsroom's task."""

import celeriac.crewai
from crew import newsroom
from newsroom_app import app


@app.task(name="newsroom.article", soft_time_limit=900)
def article(topic: str) -> str:
    """Has the newsroom write an article about a topic."""
    return celeriac.crewai.kickoff(newsroom(topic)).raw
