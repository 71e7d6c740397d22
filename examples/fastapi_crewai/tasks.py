"""The newsroom's task."""

import celeriac.crewai
from crew import newsroom
from newsroom_app import app

# Of what CrewAI stores on its own account, crews that run at the same time share nothing.
celeriac.crewai.separate_storage("storage")


@app.task(name="newsroom.article", soft_time_limit=900)
def article(topic: str) -> str:
    """Has the newsroom write an article about a topic."""
    return celeriac.crewai.kickoff(newsroom(topic)).raw
