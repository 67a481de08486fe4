"""No SDK at all: httpx, requests and aiohttp."""

import httpx
import requests
from check import Case

CHAT = {"model": "m", "messages": [{"role": "user", "content": "one two three"}]}
STREAMED = {**CHAT, "stream": True}


def with_httpx(url: str) -> None:
    httpx.post(f"{url}/chat/completions", json=CHAT).raise_for_status()
    with httpx.stream("POST", f"{url}/chat/completions", json=STREAMED) as response:
        for _ in response.iter_lines():
            pass


async def with_httpx_async(url: str) -> None:
    async with httpx.AsyncClient() as client:
        await client.post(f"{url}/chat/completions", json=CHAT)
        async with client.stream("POST", f"{url}/chat/completions", json=STREAMED) as response:
            async for _ in response.aiter_lines():
                pass


def with_requests(url: str) -> None:
    requests.post(f"{url}/chat/completions", json=CHAT, timeout=9).raise_for_status()
    with requests.post(f"{url}/chat/completions", json=STREAMED, stream=True, timeout=9) as response:
        for _ in response.iter_lines():
            pass


async def with_aiohttp(url: str) -> None:
    import aiohttp

    async with aiohttp.ClientSession() as session:
        async with session.post(f"{url}/chat/completions", json=CHAT) as response:
            await response.json()
        async with session.post(f"{url}/chat/completions", json=STREAMED) as response:
            async for _ in response.content:
                pass


CASES = {
    "httpx": Case(with_httpx, 2, ("*",)),
    "httpx, async": Case(with_httpx_async, 2, ("*",)),
    "requests": Case(with_requests, 2, ("*",)),
    # Nothing is asked for there, and a stream has no usage of its own accord.
    "aiohttp": Case(with_aiohttp, 2, ("*",), token_ids=False, usage=False),
}
