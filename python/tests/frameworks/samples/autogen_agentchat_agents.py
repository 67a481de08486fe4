"""AutoGen's agentchat: an agent with a tool, and teams."""

from typing import Any

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.conditions import MaxMessageTermination
from autogen_agentchat.teams import RoundRobinGroupChat
from autogen_ext.models.openai import OpenAIChatCompletionClient
from check import Case

TASK = "one two three"


async def add(x: int) -> int:
    """Adds one."""
    return x + 1


def client(url: str) -> OpenAIChatCompletionClient:
    info: Any = {
        "vision": False,
        "function_calling": True,
        "json_output": False,
        "family": "unknown",
        "structured_output": False,
    }
    return OpenAIChatCompletionClient(model="m", base_url=url, api_key="k", model_info=info)


def team(url: str) -> RoundRobinGroupChat:
    agents = [AssistantAgent(name, client(url)) for name in ("primary", "critic")]
    return RoundRobinGroupChat(agents, termination_condition=MaxMessageTermination(5))


async def agent(url: str) -> None:
    await AssistantAgent("writer", client(url), tools=[add], reflect_on_tool_use=True).run(task=TASK)


async def streamed(url: str) -> None:
    writer = AssistantAgent("writer", client(url), tools=[add], model_client_stream=True)
    async for _ in writer.run_stream(task=TASK):
        pass


async def run_team(url: str) -> None:
    await team(url).run(task=TASK)


async def stream_team(url: str) -> None:
    async for _ in team(url).run_stream(task=TASK):
        pass


CASES = {
    "agent with a tool": Case(agent, 2, ("writer",), ("agent", "tool"), tools=True),
    "streamed": Case(streamed, 1, ("writer",), ("agent", "tool"), tools=True),
    "team": Case(run_team, 4, ("primary", "critic"), ("team", "agent")),
    "team, streamed": Case(stream_team, 4, ("primary", "critic"), ("team", "agent")),
}
