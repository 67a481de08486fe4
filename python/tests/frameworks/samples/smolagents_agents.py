"""smolagents: an agent that calls tools, one that writes code, and one below another."""

from check import Case
from smolagents import CodeAgent, OpenAIModel, ToolCallingAgent, tool

TASK = "one two three"


@tool
def add(x: int) -> int:
    """Adds one.

    Args:
        x: A number.
    """
    return x + 1


def model(url: str) -> OpenAIModel:
    return OpenAIModel("m", api_base=url, api_key="k")


def tools(url: str) -> None:
    ToolCallingAgent([add], model(url), name="writer", verbosity_level=0).run(TASK)


def streamed(url: str) -> None:
    agent = ToolCallingAgent([add], model(url), name="writer", verbosity_level=0, stream_outputs=True)
    for _ in agent.run(TASK, stream=True):
        pass


def code(url: str) -> None:
    CodeAgent([add], model(url), verbosity_level=0).run(TASK)


STEPS = ("agent", "turn", "tool")
CASES = {
    "ToolCallingAgent": Case(tools, 2, ("writer",), STEPS, tools=True),
    "ToolCallingAgent, streamed": Case(streamed, 2, ("writer",), STEPS, tools=True),
    "CodeAgent": Case(code, 1, ("CodeAgent",), STEPS),
}
