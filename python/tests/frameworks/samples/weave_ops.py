"""Weave: functions that are ops, plain, async and generators."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import openai
import weave
from check import Case


@weave.op
def add(x: int) -> int:
    return x + 1


@weave.op
def write(client: Any, question: str) -> str:
    messages: Any = [{"role": "user", "content": f"{question} {add(2)}"}]
    return client.chat.completions.create(model="m", messages=messages).choices[0].message.content


@weave.op
async def think(question: str) -> dict[str, Any]:
    return {"thought": question, "steps": [1, 2]}


@weave.op
def words(text: str) -> Iterator[str]:
    yield from text.split()


async def ops(url: str) -> None:
    client = openai.OpenAI(base_url=url)
    await think("one")
    assert list(words(write(client, "one two"))) == ["3", "two", "one"]
    with suppress(TypeError):
        add("x")


CASES = {"ops": Case(ops, 1, ("*",))}
