"""Spans of model calls that other instrumentations make: each call counts once, under the name that all
readers know."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from fake_vllm import FakeVLLM, ids_of
from opentelemetry import trace as trace_api

from agentlightning.adapter import TracerTraceToTriplet
from agentlightning.store import InMemoryLightningStore
from agentlightning.tracer import OtelTracer
from agentlightning.types import Triplet

GENAI = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "inside",
    "gen_ai.request.model": "m",
    "gen_ai.system_instructions": json.dumps([{"type": "text", "content": "be brief"}]),
    "gen_ai.input.messages": json.dumps(
        [{"role": "user", "parts": [{"type": "text", "content": "one two"}]}]
    ),
    "gen_ai.output.messages": json.dumps(
        [
            {
                "role": "assistant",
                "parts": [
                    {"type": "text", "content": "two one"},
                    {"type": "tool_call", "id": "c", "name": "add", "arguments": {"x": 1}},
                ],
                "finish_reason": "tool_call",
            }
        ]
    ),
    "gen_ai.usage.input_tokens": 4,
    "gen_ai.usage.output_tokens": 2,
}
OPENINFERENCE = {
    "openinference.span.kind": "LLM",
    "llm.model_name": "m",
    "llm.input_messages.0.message.role": "system",
    "llm.input_messages.0.message.content": "be brief",
    "llm.input_messages.1.message.role": "user",
    "llm.input_messages.1.message.contents.0.message_content.type": "text",
    "llm.input_messages.1.message.contents.0.message_content.text": "one two",
    "llm.output_messages.0.message.role": "assistant",
    "llm.output_messages.0.message.content": "two one",
    "llm.output_messages.0.message.tool_calls.0.tool_call.id": "c",
    "llm.output_messages.0.message.tool_calls.0.tool_call.function.name": "add",
    "llm.output_messages.0.message.tool_calls.0.tool_call.function.arguments": '{"x": 1}',
    "llm.token_count.prompt": 4,
    "llm.token_count.completion": 2,
    "llm.token_count.total": 6,
}
OPENLLMETRY = {
    "llm.request.type": "chat",
    "gen_ai.request.model": "m",
    "gen_ai.prompt.0.role": "system",
    "gen_ai.prompt.0.content": "be brief",
    "gen_ai.prompt.1.role": "user",
    "gen_ai.prompt.1.content": "one two",
    "gen_ai.completion.0.role": "assistant",
    "gen_ai.completion.0.content": "two one",
    "gen_ai.completion.0.tool_calls.0.id": "c",
    "gen_ai.completion.0.tool_calls.0.name": "add",
    "gen_ai.completion.0.tool_calls.0.arguments": '{"x": 1}',
    "gen_ai.usage.input_tokens": 4,
    "gen_ai.usage.output_tokens": 2,
}


@pytest.fixture
def tracer() -> Iterator[OtelTracer]:
    tracer = OtelTracer()
    with tracer.lifespan(InMemoryLightningStore()):
        yield tracer


def _triplets(tracer: OtelTracer) -> list[Triplet]:
    return TracerTraceToTriplet().adapt(tracer.get_last_trace())


@pytest.mark.parametrize(
    "dialect", [GENAI, OPENINFERENCE, OPENLLMETRY], ids=["genai", "openinference", "openllmetry"]
)
async def test_a_call_that_only_others_have_seen(tracer: OtelTracer, dialect: dict[str, Any]) -> None:
    async with tracer.trace_context():
        with trace_api.get_tracer("theirs").start_as_current_span("their name", attributes=dialect):
            pass
    (span,) = tracer.get_last_trace()
    assert span.name == "openai.chat.completion"
    assert span.attributes["agentlightning.original_name"] == "their name"
    assert {**span.attributes, **dialect} == span.attributes
    assert span.attributes["gen_ai.usage.prompt_tokens"] == 4
    assert span.attributes["gen_ai.usage.total_tokens"] == 6
    (triplet,) = _triplets(tracer)
    contents = [(message["role"], message["content"]) for message in triplet.prompt["raw_content"]]
    assert contents == [("system", "be brief"), ("user", "one two")]
    (said,) = triplet.response["raw_content"]
    assert (said["content"], said["tool_calls"][0]["name"]) == ("two one", "add")
    assert json.loads(said["tool_calls"][0]["arguments"]) == {"x": 1}
    assert triplet.metadata["request"]["model"] == "m"


async def test_messages_that_are_events(tracer: OtelTracer) -> None:
    async with tracer.trace_context():
        attributes = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"}
        with trace_api.get_tracer("theirs").start_as_current_span("chat m", attributes=attributes) as span:
            span.add_event("gen_ai.user.message", {"content": "one two"})
            span.add_event(
                "gen_ai.choice",
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "message": '{"role": "assistant", "content": "two one"}',
                },
            )
    (triplet,) = _triplets(tracer)
    assert triplet.prompt["raw_content"][0]["content"] == "one two"
    assert triplet.response["raw_content"][0] == {
        "role": "assistant",
        "content": "two one",
        "finish_reason": "stop",
    }


@pytest.mark.parametrize("name", ["chat m", "openai.chat.completion", "openai.chat.completions.create"])
async def test_a_call_that_others_see_too_counts_once(tracer: OtelTracer, name: str) -> None:
    with FakeVLLM() as server:
        async with tracer.trace_context():
            client = openai.OpenAI(base_url=server.base_url, api_key="k")
            with trace_api.get_tracer("theirs").start_as_current_span(name, attributes=GENAI) as around:
                completion = client.chat.completions.create(
                    model="m", messages=[{"role": "user", "content": "one two"}]
                )
                around.set_attribute("gen_ai.response.id", completion.id)
    ours, theirs = tracer.get_last_trace()
    assert theirs.name == name
    assert ours.parent_id == theirs.span_id
    (triplet,) = _triplets(tracer)
    # Whichever of the two a reader keeps, it has the token ids.
    assert triplet.response["token_ids"] == ids_of("two one")
    assert triplet.metadata["response_id"] == completion.id


async def test_a_call_that_others_write_beside_ours_counts_once(tracer: OtelTracer) -> None:
    with FakeVLLM() as server:
        async with tracer.trace_context():
            client = openai.OpenAI(base_url=server.base_url, api_key="k")
            completion = client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "one two"}]
            )
            attributes = {**GENAI, "gen_ai.response.id": completion.id}
            with trace_api.get_tracer("theirs").start_as_current_span("chat m", attributes=attributes):
                pass
    assert [span.name for span in tracer.get_last_trace()] == ["openai.chat.completion", "chat m"]
    assert len(_triplets(tracer)) == 1


async def test_other_spans_stay_what_they_are(tracer: OtelTracer) -> None:
    others: list[tuple[str, dict[str, Any]]] = [
        ("POST", {"http.request.method": "POST"}),
        ("execute_tool add", {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "add"}),
        ("embeddings m", {"gen_ai.operation.name": "embeddings"}),
        ("chat m", {"gen_ai.operation.name": "chat"}),
        ("step", {"openinference.span.kind": "CHAIN", "input.value": "x"}),
    ]
    async with tracer.trace_context():
        for name, attributes in others:
            with trace_api.get_tracer("theirs").start_as_current_span(name, attributes=attributes):
                pass
    assert [(span.name, span.attributes) for span in tracer.get_last_trace()] == others


async def test_agents_are_known_by_name(tracer: OtelTracer) -> None:
    agent = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "writer"}
    async with tracer.trace_context():
        theirs = trace_api.get_tracer("theirs")
        with (
            theirs.start_as_current_span("invoke_agent writer", attributes=agent),
            theirs.start_as_current_span("chat m", attributes=GENAI),
        ):
            pass
    (triplet,) = _triplets(tracer)
    assert triplet.metadata["agent_name"] == "writer"
