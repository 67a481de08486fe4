"""Anthropic's SDK itself."""

from typing import Any

import anthropic
from check import Case

ARGUMENTS: Any = {
    "model": "m",
    "max_tokens": 99,
    "messages": [{"role": "user", "content": "one two three"}],
}
ADD: Any = {
    "name": "add",
    "input_schema": {"type": "object", "properties": {"x": {"type": "integer"}}},
}


def messages(url: str) -> None:
    client = anthropic.Anthropic(base_url=url.removesuffix("/v1"))
    client.messages.create(**ARGUMENTS, tools=[ADD])
    with client.messages.stream(**ARGUMENTS) as stream:
        stream.until_done()


async def messages_async(url: str) -> None:
    async with anthropic.AsyncAnthropic(base_url=url.removesuffix("/v1")) as client:
        await client.messages.create(**ARGUMENTS, tools=[ADD])
        async with client.messages.stream(**ARGUMENTS) as stream:
            await stream.until_done()


CASES = {
    "messages": Case(messages, 2, ("*",), tools=True),
    "messages, async": Case(messages_async, 2, ("*",), tools=True),
}
