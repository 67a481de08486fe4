"""CrewAI: a crew with a tool, an agent by itself, a flow."""

from typing import Any

from check import Case
from crewai import LLM, Agent, Crew, Task
from crewai.flow.flow import Flow, listen, start
from crewai.tools import tool


@tool("add")
def add(x: int) -> int:
    """Adds one."""
    return x + 1


def agent(url: str, role: str, **kwargs: Any) -> Agent:
    llm = LLM(model="openai/m", base_url=url, api_key="k")
    return Agent(role=role, goal="to write", backstory="a writer", llm=llm, **kwargs)


def crew(url: str) -> Crew:
    writer, critic = agent(url, "writer", tools=[add]), agent(url, "critic")
    tasks = [
        Task(description="one two three", expected_output="words", agent=writer, name="write"),
        Task(description="judge", expected_output="words", agent=critic, name="judge"),
    ]
    return Crew(agents=[writer, critic], tasks=tasks, name="pair")


def kickoff(url: str) -> None:
    crew(url).kickoff()


async def kickoff_async(url: str) -> None:
    await crew(url).akickoff()


def alone(url: str) -> None:
    agent(url, "writer").kickoff("one two three")


async def flow(url: str) -> None:
    class Steps(Flow[Any]):
        @start()
        async def first(self) -> Any:
            return await agent(url, "writer").kickoff_async("one two three")

        @listen(first)
        def second(self, result: Any) -> Any:
            return result.raw

    await Steps().kickoff_async()


STEPS = ("crew", "task", "agent", "tool")
CASES = {
    "crew": Case(kickoff, 3, ("writer", "critic"), STEPS, tools=True),
    "crew, async": Case(kickoff_async, 3, ("writer", "critic"), STEPS, tools=True),
    "an agent by itself": Case(alone, 1, ("writer",), ("agent",)),
    "flow": Case(flow, 1, ("writer",), ("workflow", "turn", "agent")),
}
