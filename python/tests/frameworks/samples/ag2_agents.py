"""AG2 from 1.0 on."""

from ag2 import Agent
from ag2.config import OpenAIConfig
from check import Case


def add(x: int) -> int:
    """Adds one."""
    return x + 1


def config(url: str, **kwargs: bool) -> OpenAIConfig:
    return OpenAIConfig("m", base_url=url, api_key="k", **kwargs)


async def ask(url: str) -> None:
    await Agent("writer", config=config(url), tools=[add]).ask("one two three")


async def streamed(url: str) -> None:
    await Agent("writer", config=config(url, streaming=True), tools=[add]).ask("one two three")


CASES = {
    "ask": Case(ask, 2, ("writer",), ("agent", "tool"), tools=True),
    "streamed": Case(streamed, 2, ("writer",), ("agent", "tool"), tools=True),
}
