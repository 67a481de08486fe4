"""Calls of models through the gateway, booked to an attempt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fake_vllm import FakeVLLM

import agentlightning as agl
from agentlightning.llm_proxy import LLMProxy

if TYPE_CHECKING:
    import openai


GATEWAY = "agentlightning.gateway."


def models(engine: FakeVLLM, *names: str) -> list[Any]:
    """A list on which `engine` answers for these names."""
    return [
        {"model_name": name, "litellm_params": {"model": f"hosted_vllm/{name}", "api_base": engine.base_url}}
        for name in names
    ]


async def attempted(proxy: LLMProxy) -> tuple[agl.AttemptedRollout, str]:
    """An attempt, and the base URL at which its calls are booked to it."""
    store = proxy.get_store()
    assert store is not None
    rollout = await store.start_rollout(input="task")
    return rollout, proxy.as_resource(rollout.rollout_id, rollout.attempt.attempt_id).endpoint


async def booked(proxy: LLMProxy) -> tuple[agl.AttemptedRollout, openai.AsyncOpenAI]:
    """An attempt, and a client whose calls are booked to it."""
    import openai

    rollout, url = await attempted(proxy)
    return rollout, openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0)


async def spans_of(proxy: LLMProxy, rollout: agl.AttemptedRollout) -> list[agl.Span]:
    """What was recorded of an attempt."""
    store = proxy.get_store()
    assert store is not None
    return list(await store.query_spans(rollout.rollout_id))


def question(text: str) -> Any:
    """Messages with one question."""
    return [{"role": "user", "content": text}]


def tokens_of(span: agl.Span) -> tuple[Any, Any]:
    """The ids of prompt and response of a span that training data can be made of."""
    assert span.attributes[f"{GATEWAY}outcome"] == "answered"
    assert f"{GATEWAY}untrainable" not in span.attributes
    prompt, response = span.attributes["prompt_token_ids"], span.attributes["response_token_ids"]
    assert isinstance(prompt, list)
    assert isinstance(response, list)
    assert span.attributes["gen_ai.usage.input_tokens"] == len(prompt)
    assert span.attributes["gen_ai.usage.output_tokens"] == len(response)
    logprobs = span.attributes[f"{GATEWAY}choices.0.logprobs"]
    assert isinstance(logprobs, list)
    assert len(logprobs) == len(response)
    return prompt, response
