"""The OpenAI Agents SDK, over responses and over chat completions."""

from typing import Any

from agents import (
    Agent,
    GuardrailFunctionOutput,
    InputGuardrail,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    RunConfig,
    Runner,
    function_tool,
    set_trace_processors,
)
from check import Case
from openai import AsyncOpenAI

# Nothing is to be sent to OpenAI.
set_trace_processors([])
QUESTION = "one two three"


@function_tool
def add(x: int) -> int:
    """Adds one."""
    return x + 1


def writer(url: str, *, chat: bool = False, **kwargs: Any) -> Agent[Any]:
    model = OpenAIChatCompletionsModel if chat else OpenAIResponsesModel
    options = {"name": "writer", "instructions": "be brief", **kwargs}
    return Agent(model=model("m", AsyncOpenAI(base_url=url)), **options)


async def responses(url: str) -> None:
    await Runner.run(writer(url, tools=[add]), QUESTION)


async def chat(url: str) -> None:
    await Runner.run(writer(url, chat=True, tools=[add]), QUESTION)


async def streamed(url: str) -> None:
    async for _ in Runner.run_streamed(writer(url, tools=[add]), QUESTION).stream_events():
        pass


async def untraced(url: str) -> None:
    run_config = RunConfig(tracing_disabled=True)
    await Runner.run(writer(url, chat=True, tools=[add]), QUESTION, run_config=run_config)


def sync(url: str) -> None:
    Runner.run_sync(writer(url, chat=True), QUESTION)


async def handoff(url: str) -> None:
    triage = writer(url, chat=True, name="triage", handoffs=[writer(url, chat=True)])
    await Runner.run(triage, QUESTION)


async def guardrail(url: str) -> None:
    judge = writer(url, chat=True, name="judge")

    async def check(context: Any, agent: Any, data: Any) -> GuardrailFunctionOutput:
        await Runner.run(judge, data, context=context.context)
        return GuardrailFunctionOutput(output_info=None, tripwire_triggered=False)

    guarded = writer(url, chat=True, input_guardrails=[InputGuardrail(check, run_in_parallel=False)])
    await Runner.run(guarded, QUESTION)


STEPS = ("workflow", "agent", "turn", "tool")
CASES = {
    "responses": Case(responses, 2, ("writer",), STEPS, tools=True),
    "chat completions": Case(chat, 2, ("writer",), STEPS, tools=True),
    "streamed": Case(streamed, 2, ("writer",), STEPS, tools=True),
    "tracing disabled": Case(untraced, 2, ("writer",), STEPS, tools=True),
    "sync": Case(sync, 1, ("writer",), ("agent",)),
    "handoff": Case(handoff, 2, ("triage", "writer"), ("agent",), tools=True),
    "guardrail": Case(guardrail, 2, ("judge", "writer"), ("agent",)),
}
