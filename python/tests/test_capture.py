"""Calls of models on every route and through every HTTP client: what is recorded, and that the caller notices
nothing."""

from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import openai
import pytest
import requests
from fake_vllm import FakeVLLM, ids_of

import agentlightning as agl
from agentlightning.adapter import TracerTraceToTriplet
from agentlightning.emitter import operation
from agentlightning.instrumentation import asking
from agentlightning.semconv import AGL_OPERATION
from agentlightning.store import InMemoryLightningStore
from agentlightning.tracer import OtelTracer
from agentlightning.types import Span

PROMPT = "one two three"
REPLY = "three two one"
SYSTEM = "be brief"
TOOL = {"type": "object", "properties": {"x": {"type": "integer"}}}

# What each route is sent, and how.
CHAT = {
    "model": "m",
    "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": PROMPT}],
}
RESPONSES = {"model": "m", "instructions": SYSTEM, "input": PROMPT}
MESSAGES = {
    "model": "m",
    "max_tokens": 9,
    "system": SYSTEM,
    "messages": [{"role": "user", "content": [{"type": "text", "text": PROMPT}]}],
}
GEMINI = {
    "systemInstruction": {"parts": [{"text": SYSTEM}]},
    "contents": [{"role": "user", "parts": [{"text": PROMPT}]}],
    "generationConfig": {"temperature": 0.5},
}
COMPLETION = {"model": "m", "prompt": PROMPT}
ROUTES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/chat/completions", CHAT),
    "completions": ("/completions", COMPLETION),
    "responses": ("/responses", RESPONSES),
    "messages": ("/messages", MESSAGES),
    "gemini": ("/models/m:generateContent", GEMINI),
    "ollama": ("/api/chat", {**CHAT, "stream": False}),
}


@pytest.fixture(autouse=True)
def _forget_probes() -> None:
    asking.forget_probes()


@pytest.fixture
def server() -> Iterator[FakeVLLM]:
    with FakeVLLM() as server:
        yield server


@pytest.fixture
def tracer() -> Iterator[OtelTracer]:
    tracer = OtelTracer()
    with tracer.lifespan(InMemoryLightningStore()):
        yield tracer


def _attributes(span: Span) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in span.attributes.items()}


def _streamed(route: str) -> tuple[str, dict[str, Any]]:
    path, body = ROUTES[route]
    if route == "gemini":
        return path.replace(":generate", ":streamGenerate") + "?alt=sse", body
    return path, {**body, "stream": True}


def _check(span: Span, route: str, *, streamed: bool = False, asked: bool = True) -> None:
    """That a span says everything about the call of a route."""
    attributes = _attributes(span)
    assert span.name == "openai.chat.completion"
    assert span.status.status_code == "OK"
    prompt = [PROMPT] if route == "completions" else [SYSTEM, PROMPT]
    contents = [attributes.get(f"gen_ai.prompt.{index}.content") for index in range(len(prompt))]
    assert contents == prompt
    assert attributes[f"gen_ai.prompt.{len(prompt) - 1}.role"] == "user"
    assert attributes["gen_ai.request.model"] == "m"
    assert attributes["gen_ai.request.streaming"] is streamed
    assert attributes["gen_ai.completion.0.role"] == "assistant"
    assert attributes["gen_ai.completion.0.content"] == REPLY
    assert attributes["gen_ai.completion.0.finish_reason"] == "stop"
    (said,) = json.loads(attributes["gen_ai.output.messages"])
    assert said["parts"] == [{"type": "text", "content": REPLY}]
    asked_for = json.loads(attributes["gen_ai.input.messages"])
    assert asked_for[-1] == {"role": "user", "parts": [{"type": "text", "content": PROMPT}]}
    prompt_ids = ids_of(" ".join(prompt))
    assert attributes["gen_ai.usage.input_tokens"] == len(prompt_ids)
    assert attributes["gen_ai.usage.prompt_tokens"] == len(prompt_ids)
    assert attributes["gen_ai.usage.completion_tokens"] == 3
    assert attributes["gen_ai.usage.total_tokens"] == len(prompt_ids) + 3
    if route != "ollama":
        assert attributes["gen_ai.response.id"]
    if asked and route not in ("gemini", "ollama"):
        assert attributes["prompt_token_ids"] == prompt_ids
        assert attributes["response_token_ids"] == ids_of(REPLY)
        logprobs = json.loads(attributes["logprobs.content"])
        assert [entry["logprob"] for entry in logprobs] == [-0.5] * 3


def _post_httpx(url: str, body: dict[str, Any]) -> bytes:
    with httpx2.Client() as client:
        return client.post(url, json=body).content


def _post_httpx_streamed(url: str, body: dict[str, Any]) -> bytes:
    with httpx2.Client() as client, client.stream("POST", url, json=body) as response:
        return "\n".join(response.iter_lines()).encode()


def _post_httpx_async(url: str, body: dict[str, Any]) -> bytes:
    async def post() -> bytes:
        async with httpx2.AsyncClient() as client, client.stream("POST", url, json=body) as response:
            return b"".join([part async for part in response.aiter_bytes()])

    return asyncio.run(post())


def _post_requests(url: str, body: dict[str, Any]) -> bytes:
    return requests.post(url, json=body, timeout=9).content


def _post_requests_streamed(url: str, body: dict[str, Any]) -> bytes:
    with requests.post(url, json=body, stream=True, timeout=9) as response:
        return b"\n".join(response.iter_lines())


WAYS: list[Callable[[str, dict[str, Any]], bytes]] = [
    _post_httpx,
    _post_httpx_streamed,
    _post_httpx_async,
    _post_requests,
    _post_requests_streamed,
]


def _payloads(body: bytes) -> list[Any]:
    """What a body says, without what differs from call to call."""
    events = [line.partition(b"data:")[2] if b"data:" in line else line for line in body.splitlines()]
    payloads = []
    for event in events:
        if not event.strip() or event.startswith(b"event:") or event.strip() == b"[DONE]":
            continue
        text = json.dumps(json.loads(event))
        for prefix in ("chatcmpl", "cmpl", "resp", "msg", "gen"):
            head, found, tail = text.partition(f'"{prefix}-')
            text = f'{head}"ID{tail[tail.index(chr(34)) :]}' if found else text
        payload = json.loads(text)
        payload.pop("created", None)
        payloads.append(payload)
    return payloads


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__.removeprefix("_post_"))
def test_every_route_through_every_client(
    server: FakeVLLM, tracer: OtelTracer, route: str, way: Callable[[str, dict[str, Any]], bytes]
) -> None:
    async def agent() -> list[bytes]:
        async with tracer.trace_context():
            bodies = []
            for path, body in (ROUTES[route], _streamed(route)):
                bodies.append(await asyncio.to_thread(way, server.base_url + path, body))
            return bodies

    with_us = asyncio.run(agent())
    plain, streamed = (span for span in tracer.get_last_trace())
    _check(plain, route)
    _check(streamed, route, streamed=True)
    triplets = TracerTraceToTriplet().adapt(tracer.get_last_trace())
    assert [triplet.response["raw_content"][0]["content"] for triplet in triplets] == [REPLY, REPLY]
    # The caller gets what it would get without us.
    without_us = [way(server.base_url + path, body) for path, body in (ROUTES[route], _streamed(route))]
    for mine, other in zip(with_us, without_us, strict=True):
        mine_said, other_said = _payloads(mine), _payloads(other)
        assert mine_said
        assert _without_ids(mine_said) == _without_ids(other_said)


def _without_ids(value: Any) -> Any:
    """Ids count up from call to call."""
    if isinstance(value, dict):
        ids = ("id", "item_id", "responseId")
        return {key: _without_ids(item) for key, item in value.items() if key not in ids}
    return [_without_ids(item) for item in value] if isinstance(value, list) else value


async def test_servers_that_know_no_token_ids_are_asked_for_none(tracer: OtelTracer) -> None:
    with FakeVLLM(owned_by="somebody") as stranger:
        async with tracer.trace_context():
            for path, body in ROUTES.values():
                await asyncio.to_thread(_post_httpx, stranger.base_url + path, body)
        assert [{k: v for k, v in r.items() if k[0] != "_"} for r in stranger.requests] == [
            body for _, body in ROUTES.values()
        ]
    for span, route in zip(tracer.get_last_trace(), ROUTES, strict=True):
        _check(span, route, asked=False)
        assert "prompt_token_ids" not in span.attributes


async def test_an_address_that_names_an_attempt_is_a_gateway_s(tracer: OtelTracer) -> None:
    with FakeVLLM(owned_by="somebody") as gateway:
        url = gateway.base_url.replace("/v1", "/rollout/r/attempt/a/v1")
        async with tracer.trace_context():
            body = await asyncio.to_thread(_post_httpx, f"{url}/chat/completions", CHAT)
        assert gateway.probes == 0
        assert gateway.requests[0]["return_token_ids"] is True
    # A gateway shows them to agents, who may count on that.
    assert json.loads(body)["prompt_token_ids"] == ids_of(f"{SYSTEM} {PROMPT}")
    _check(tracer.get_last_trace()[0], "chat")


async def test_calls_through_our_gateway_count_once(server: FakeVLLM) -> None:
    store = InMemoryLightningStore()
    params = {"model": "hosted_vllm/m", "api_base": server.base_url}
    proxy = agl.LLMProxy(model_list=[{"model_name": "m", "litellm_params": params}], store=store)
    await proxy.start()
    tracer = OtelTracer()
    with tracer.lifespan(store):
        rollout = await store.start_rollout(input="x")
        ids = {"rollout_id": rollout.rollout_id, "attempt_id": rollout.attempt.attempt_id}
        base_url = f"{proxy.as_resource().get_base_url(**ids)}/v1"
        async with tracer.trace_context(**ids):
            with operation(name="agent"):
                async with openai.AsyncOpenAI(base_url=base_url, api_key="k") as client:
                    seen = await client.chat.completions.create(**CHAT)  # type: ignore[call-overload]
                    stream = await client.chat.completions.create(**CHAT, stream=True)  # type: ignore[call-overload]
                    assert [chunk async for chunk in stream]
                    await client.responses.create(**RESPONSES)  # type: ignore[call-overload]
    await proxy.stop()
    # What the gateway shows to agents stays.
    assert seen.model_extra["prompt_token_ids"] == ids_of(f"{SYSTEM} {PROMPT}")
    spans = await store.query_spans(**ids)
    ours = [span for span in spans if span.name == "openai.chat.completion"]
    assert len(ours) == 3
    assert {span.parent_id for span in ours} == {span.span_id for span in spans if span.name == AGL_OPERATION}
    assert len(TracerTraceToTriplet().adapt(spans)) == 3
    triplets = agl.AutoTraceAdapter().adapt(spans)
    assert [triplet.response["token_ids"] for triplet in triplets] == [ids_of(REPLY)] * 3


async def test_other_requests_are_none_of_our_business(server: FakeVLLM, tracer: OtelTracer) -> None:
    async with tracer.trace_context():
        with httpx2.Client(base_url=server.base_url) as client:
            client.get("/models")
            # The route of a thread's messages, and what is no JSON.
            client.post("/threads/1/messages", json={"model": "bad", "role": "user"})
            client.post("/elsewhere", json=CHAT)
    assert tracer.get_last_trace() == []


async def test_responses_by_the_sdk(server: FakeVLLM, tracer: OtelTracer) -> None:
    tools: list[Any] = [{"type": "function", "name": "add", "description": "adds", "parameters": TOOL}]
    async with tracer.trace_context():
        client = openai.OpenAI(base_url=server.base_url, api_key="k")
        asked = client.responses.create(model="m", input=PROMPT, tools=tools)
        call = asked.output[0]
        assert call.type == "function_call"
        assert asked.model_extra == {}
        output: list[Any] = [{"type": "function_call_output", "call_id": call.call_id, "output": "2 apples"}]
        answered = client.responses.create(
            model="m", input=output, tools=tools, previous_response_id=asked.id
        )
        assert answered.output_text == "apples 2"
        with client.responses.stream(model="m", input=PROMPT) as stream:
            assert (
                "".join(event.delta for event in stream if event.type == "response.output_text.delta")
                == REPLY
            )
            assert stream.get_final_response().output_text == REPLY
    tool, first, second, third = tracer.get_last_trace()
    assert tool.name == "tool_call.add"
    assert tool.parent_id == first.span_id
    assert first.attributes["gen_ai.completion.0.tool_calls.0.name"] == "add"
    assert first.attributes["gen_ai.completion.0.finish_reason"] == "tool_calls"
    assert first.attributes["gen_ai.request.functions.0.name"] == "add"
    # What the second request only refers to.
    roles = [second.attributes.get(f"gen_ai.prompt.{index}.role") for index in range(4)]
    assert roles == ["user", "assistant", "tool", None]
    assert second.attributes["gen_ai.prompt.1.tool_calls.0.id"] == "call-1"
    assert second.attributes["gen_ai.prompt.2.content"] == "2 apples"
    assert third.attributes["gen_ai.completion.0.content"] == REPLY
    assert _attributes(third)["response_token_ids"] == ids_of(REPLY)


async def test_messages_by_the_sdk(server: FakeVLLM, tracer: OtelTracer) -> None:
    anthropic = pytest.importorskip("anthropic")
    tools: list[Any] = [{"name": "add", "description": "adds", "input_schema": TOOL}]
    address = server.base_url.removesuffix("/v1")
    history: list[Any] = [{"role": "user", "content": PROMPT}]
    async with tracer.trace_context(), anthropic.AsyncAnthropic(base_url=address, api_key="k") as other:
        client = anthropic.Anthropic(base_url=address, api_key="k")
        arguments = {"model": "m", "max_tokens": 9, "tools": tools}
        asked = client.messages.create(messages=history, **arguments)
        (call,) = asked.content
        result = {"type": "tool_result", "tool_use_id": call.id, "content": "two"}
        history += [{"role": "assistant", "content": asked.content}, {"role": "user", "content": [result]}]
        await other.messages.create(messages=history, **arguments)
        async with other.messages.stream(model="m", max_tokens=9, messages=history[:1]) as stream:
            assert "".join([text async for text in stream.text_stream]) == REPLY
    # The SDK may have spans of its own, too.
    spans = [span for span in tracer.get_last_trace() if span.name.startswith(("openai", "tool_call"))]
    tool, first, second, third = spans
    assert len(TracerTraceToTriplet().adapt(tracer.get_last_trace())) == 3
    assert (tool.name, tool.attributes["tool.parameters"]) == ("tool_call.add", '{"x": 1}')
    assert first.attributes["gen_ai.system"] == "Anthropic"
    assert first.attributes["gen_ai.completion.0.tool_calls.0.name"] == "add"
    assert json.loads(str(first.attributes["gen_ai.request.functions.0.parameters"])) == TOOL
    assert [second.attributes[f"gen_ai.prompt.{i}.role"] for i in range(3)] == ["user", "assistant", "tool"]
    assert second.attributes["gen_ai.prompt.2.tool_call_id"] == "call-1"
    assert third.attributes["gen_ai.completion.0.content"] == REPLY
    assert _attributes(third)["prompt_token_ids"] == ids_of(PROMPT)


async def test_tries_of_an_sdk_are_one_call(server: FakeVLLM, tracer: OtelTracer) -> None:
    client = openai.OpenAI(base_url=server.base_url, api_key="k", max_retries=2)
    client.models.list()
    async with tracer.trace_context():
        server.failures = [429, 503]
        client.chat.completions.create(**CHAT)  # type: ignore[call-overload]
        server.failures = [429] * 3
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(**CHAT)  # type: ignore[call-overload]
    good, bad = tracer.get_last_trace()
    _check(good, "chat")
    failures = [str(event.attributes["error.message"]) for event in good.events if event.name == "retry"]
    assert [failure[:8] for failure in failures] == ["HTTP 429", "HTTP 503"]
    assert bad.status.status_code == "ERROR"
    assert bad.attributes["error.type"] == "RateLimitError"


async def test_refusals_without_an_sdk(server: FakeVLLM, tracer: OtelTracer) -> None:
    async with tracer.trace_context():
        with httpx2.Client(base_url=server.base_url) as client:
            answer = client.post("/chat/completions", json={**CHAT, "model": "bad"})
        assert answer.status_code == 404
        assert "does not exist" in answer.text
        with pytest.raises(requests.ConnectionError):
            _post_requests("http://127.0.0.1:9/v1/chat/completions", CHAT)
    refused, unreachable = tracer.get_last_trace()
    assert refused.status.status_code == "ERROR"
    assert "does not exist" in (refused.status.description or "")
    assert refused.attributes["error.type"] == "404"
    assert unreachable.events[0].attributes["exception.type"] == "requests.exceptions.ConnectionError"


async def test_a_server_that_refuses_the_extras_is_asked_for_them_once(
    server: FakeVLLM, tracer: OtelTracer
) -> None:
    async with tracer.trace_context():
        for _ in range(3):
            await asyncio.to_thread(
                _post_httpx, f"{server.base_url}/chat/completions", {**CHAT, "model": "no-extras"}
            )
    assert len(server.requests) == 4
    assert [span.status.status_code for span in tracer.get_last_trace()] == ["OK"] * 3


async def test_responses_pickle_as_ever(server: FakeVLLM, tracer: OtelTracer) -> None:
    async with tracer.trace_context():
        with httpx2.Client() as client:
            response = client.post(f"{server.base_url}/chat/completions", json=CHAT)
        assert pickle.loads(pickle.dumps(response)).json() == response.json()
        with requests.Session() as session:
            other = session.post(f"{server.base_url}/chat/completions", json=CHAT)
        assert pickle.loads(pickle.dumps(other)).json() == other.json()


async def test_event_hooks_that_read_the_response(server: FakeVLLM, tracer: OtelTracer) -> None:
    seen: list[bytes] = []
    hooks = {"response": [lambda response: seen.append(response.read())]}
    async with tracer.trace_context():
        with httpx2.Client(event_hooks=hooks) as client:
            response = client.post(f"{server.base_url}/chat/completions", json=CHAT)
    assert "prompt_token_ids" not in response.json()
    assert len(seen) == 1
    _check(tracer.get_last_trace()[0], "chat")
