"""OpenTelemetry's conventions for generative AI, as Pydantic AI writes them: messages in attributes."""

# needs: pydantic-ai-slim[openai]
# needs: opentelemetry-sdk

import asyncio

from common import FakeVLLM, provider, save
from pydantic_ai import Agent, InstrumentationSettings
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

tracing, exporter = provider()


async def main() -> None:
    """Runs an agent that calls its tool."""
    with FakeVLLM() as engine:
        model = OpenAIChatModel("fake", provider=OpenAIProvider(base_url=engine.base_url, api_key="none"))
        settings = InstrumentationSettings(tracer_provider=tracing)
        Agent.instrument_all(settings)
        agent = Agent(model, name="adder", system_prompt="be brief")

        @agent.tool_plain
        def add(x: int) -> str:
            """Adds."""
            return f"{x} and one is two"

        await agent.run(
            "add one", model_settings={"temperature": 0.5, "extra_body": {"return_token_ids": True}}
        )


asyncio.run(main())
save("genai", exporter.get_finished_spans(), "pydantic-ai-slim", "openai")
