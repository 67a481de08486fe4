"""LiteLLM, toward an OpenAI-compatible server, vLLM, and Anthropic."""

from typing import Any

import litellm
from check import Case

MESSAGES: Any = [{"role": "user", "content": "one two three"}]


def arguments(url: str, provider: str) -> Any:
    base = url.removesuffix("/v1") if provider == "anthropic" else url
    return {"model": f"{provider}/m", "api_base": base, "api_key": "k", "messages": MESSAGES}


def openai_compatible(url: str) -> None:
    litellm.completion(**arguments(url, "openai"))
    for _ in litellm.completion(**arguments(url, "openai"), stream=True):
        pass


def vllm(url: str) -> None:
    litellm.completion(**arguments(url, "hosted_vllm"))
    for _ in litellm.completion(**arguments(url, "hosted_vllm"), stream=True):
        pass


async def vllm_async(url: str) -> None:
    await litellm.acompletion(**arguments(url, "hosted_vllm"))
    async for _ in await litellm.acompletion(**arguments(url, "hosted_vllm"), stream=True):
        pass


async def openai_async(url: str) -> None:
    await litellm.acompletion(**arguments(url, "openai"))
    async for _ in await litellm.acompletion(**arguments(url, "openai"), stream=True):
        pass


def anthropic(url: str) -> None:
    litellm.completion(**arguments(url, "anthropic"), max_tokens=99)


CASES = {
    "openai/": Case(openai_compatible, 2, ("*",)),
    "openai/, async": Case(openai_async, 2, ("*",)),
    "hosted_vllm/": Case(vllm, 2, ("*",)),
    "hosted_vllm/, async": Case(vllm_async, 2, ("*",)),
    "anthropic/": Case(anthropic, 1, ("*",)),
}
