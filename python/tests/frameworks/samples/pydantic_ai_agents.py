"""Pydantic AI, over chat completions and over responses."""

from typing import Any

from check import Case
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

QUESTION = "one two three"


def writer(url: str, model: Any = OpenAIChatModel) -> Agent[None, str]:
    agent = Agent(model("m", provider=OpenAIProvider(base_url=url, api_key="k")), name="writer")

    @agent.tool_plain
    def add(x: int) -> int:
        """Adds one."""
        return x + 1

    return agent


def chat(url: str) -> None:
    writer(url).run_sync(QUESTION)


async def chat_async(url: str) -> None:
    await writer(url).run(QUESTION)


async def streamed(url: str) -> None:
    async with writer(url).run_stream(QUESTION) as result:
        async for _ in result.stream_text():
            pass


async def responses(url: str) -> None:
    await writer(url, OpenAIResponsesModel).run(QUESTION)


STEPS = ("agent", "tool")
CASES = {
    "chat completions": Case(chat, 2, ("writer",), STEPS, tools=True),
    "chat completions, async": Case(chat_async, 2, ("writer",), STEPS, tools=True),
    "streamed": Case(streamed, 2, ("writer",), STEPS, tools=True),
    "responses": Case(responses, 2, ("writer",), STEPS, tools=True),
}
