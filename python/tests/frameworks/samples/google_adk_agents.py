"""Google's Agent Development Kit, over Gemini's routes and over LiteLLM."""

from typing import Any

from check import Case
from google.adk.agents import LlmAgent, SequentialAgent
from google.adk.models.google_llm import Gemini
from google.adk.models.lite_llm import LiteLlm
from google.adk.runners import InMemoryRunner
from google.genai import types


def add(x: int) -> int:
    """Adds one.

    Args:
        x: A number.
    """
    return x + 1


def gemini(url: str) -> Gemini:
    return Gemini(model="gemini-fake", base_url=url.removesuffix("/v1"))


def lite_llm(url: str) -> LiteLlm:
    return LiteLlm(model="hosted_vllm/m", api_base=url, api_key="k")


def writer(model: Any, name: str = "writer", **kwargs: Any) -> LlmAgent:
    return LlmAgent(name=name, model=model, instruction="be brief", **kwargs)


async def run(agent: Any, **kwargs: Any) -> None:
    runner = InMemoryRunner(agent=agent, app_name="app")
    session = await runner.session_service.create_session(app_name="app", user_id="u")
    message = types.Content(role="user", parts=[types.Part(text="one two three")])
    async for _ in runner.run_async(user_id="u", session_id=session.id, new_message=message, **kwargs):
        pass


async def by_gemini(url: str) -> None:
    await run(writer(gemini(url), tools=[add]))


async def by_gemini_streamed(url: str) -> None:
    from google.adk.agents.run_config import RunConfig, StreamingMode

    await run(writer(gemini(url), tools=[add]), run_config=RunConfig(streaming_mode=StreamingMode.SSE))


async def by_lite_llm(url: str) -> None:
    await run(writer(lite_llm(url), tools=[add]))


async def several(url: str) -> None:
    agents = [writer(lite_llm(url)), writer(lite_llm(url), "critic")]
    await run(SequentialAgent(name="pair", sub_agents=agents))


CASES = {
    "Gemini": Case(by_gemini, 2, ("writer",), ("agent", "tool"), tools=True, token_ids=False),
    "Gemini, streamed": Case(
        by_gemini_streamed, 2, ("writer",), ("agent", "tool"), tools=True, token_ids=False
    ),
    "LiteLLM": Case(by_lite_llm, 2, ("writer",), ("agent", "tool"), tools=True),
    "SequentialAgent": Case(several, 2, ("writer", "critic"), ("agent",)),
}
