"""DSPy: a predictor, a program, ReAct."""

from typing import Any

import dspy
from check import Case


def add(x: int) -> int:
    """Adds one."""
    return x + 1


class Program(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.think = dspy.ChainOfThought("question -> answer")

    def forward(self, question: str) -> Any:
        return self.think(question=question)

    async def aforward(self, question: str) -> Any:
        return await self.think.acall(question=question)


def lm(url: str) -> dspy.LM:
    return dspy.LM("openai/m", api_base=url, api_key="k", cache=False)


def program(url: str) -> None:
    with dspy.context(lm=lm(url)):
        Program()(question="one two three")


async def program_async(url: str) -> None:
    with dspy.context(lm=lm(url)):
        await Program().acall(question="one two three")


def react(url: str) -> None:
    with dspy.context(lm=lm(url)):
        dspy.ReAct("question -> answer", tools=[add])(question="one two three")


CASES = {
    "program": Case(program, 1, ("Program",), ("chain",)),
    "program, async": Case(program_async, 1, ("Program",), ("chain",)),
    "ReAct": Case(react, 2, ("ReAct",), ("chain", "tool")),
}
