"""The OpenAI SDK itself."""

from typing import Any

import openai
from check import Case

MESSAGES: Any = [{"role": "user", "content": "one two three"}]
ADD: Any = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}},
    },
}


def chat(url: str) -> None:
    client = openai.OpenAI(base_url=url)
    client.chat.completions.create(model="m", messages=MESSAGES, tools=[ADD])
    for _ in client.chat.completions.create(model="m", messages=MESSAGES, stream=True):
        pass


async def chat_async(url: str) -> None:
    async with openai.AsyncOpenAI(base_url=url) as client:
        await client.chat.completions.create(model="m", messages=MESSAGES, tools=[ADD])
        async for _ in await client.chat.completions.create(model="m", messages=MESSAGES, stream=True):
            pass


def responses(url: str) -> None:
    client = openai.OpenAI(base_url=url)
    tool: Any = {"type": "function", **ADD["function"], "strict": False}
    client.responses.create(model="m", input="one two three", tools=[tool])
    with client.responses.stream(model="m", input="one two three") as stream:
        stream.until_done()


async def responses_async(url: str) -> None:
    async with openai.AsyncOpenAI(base_url=url) as client:
        await client.responses.create(model="m", input="one two three")
        async for _ in await client.responses.create(model="m", input="one two three", stream=True):
            pass


CASES = {
    "chat completions": Case(chat, 2, ("*",), tools=True),
    "chat completions, async": Case(chat_async, 2, ("*",), tools=True),
    "responses": Case(responses, 2, ("*",), tools=True),
    "responses, async": Case(responses_async, 2, ("*",)),
}
