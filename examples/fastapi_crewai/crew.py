"""A newsroom of three agents, as CrewAI's users write them. Nothing here knows of task queues."""

import os

from crewai import LLM, Agent, Crew, Task

os.environ.setdefault("OPENAI_API_KEY", "none is needed for a local model")


def newsroom(topic: str) -> Crew:
    """The crew that writes an article: one agent looks things up, one writes, one edits."""
    llm = LLM(
        model=os.environ.get("MODEL", "openai/gpt-4o-mini"),
        base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8011/v1"),
        stream=True,
    )

    def agent(role: str, goal: str) -> Agent:
        return Agent(role=role, goal=goal, backstory=f"A {role.lower()} of a small newspaper.", llm=llm)

    researcher = agent("Researcher", f"Find what is known about {topic}")
    writer = agent("Writer", f"Write an article about {topic} that people read to its end")
    editor = agent("Editor", "Cut what is not needed")
    research = Task(
        name="research",
        description=f"List the facts about {topic}.",
        expected_output="A list of facts",
        agent=researcher,
    )
    draft = Task(
        name="draft",
        description=f"Write an article about {topic}.",
        expected_output="An article",
        agent=writer,
        context=[research],
    )
    edit = Task(
        name="edit",
        description="Edit the article.",
        expected_output="The final article",
        agent=editor,
        context=[draft],
    )
    return Crew(agents=[researcher, writer, editor], tasks=[research, draft, edit], name="newsroom")
