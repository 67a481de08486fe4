"""Calls of the OpenAI SDK: what is recorded of them, and that the caller notices nothing."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import openai
import pytest
from fake_vllm import FakeVLLM, ids_of
from pydantic import BaseModel

from agentlightning.emitter import emit_reward
from agentlightning.instrumentation import asking
from agentlightning.store import InMemoryLightningStore
from agentlightning.tracer import OtelTracer
from agentlightning.tracer.resources import active_resources
from agentlightning.types import ProxyLLM, Span

PROMPT = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "one two three"}]
PROMPT_IDS = ids_of("be brief one two three")
REPLY = "three two one"
TOOL = {
    "type": "function",
    "function": {"name": "add", "description": "adds", "parameters": {"type": "object", "properties": {}}},
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


def _client(server: FakeVLLM, **kwargs: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.base_url, api_key="key", max_retries=0, **kwargs)


def _async_client(server: FakeVLLM) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=server.base_url, api_key="key", max_retries=0)


def _attributes(span: Span) -> dict[str, Any]:
    """A span's attributes as they come back from a store, where sequences are lists."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in span.attributes.items()}


def _check(span: Span, *, streamed: bool = False) -> None:
    """That a span holds everything about the call of PROMPT."""
    assert span.name == "openai.chat.completion"
    assert span.status.status_code == "OK"
    expected = {
        "gen_ai.request.type": "chat",
        "gen_ai.system": "OpenAI",
        "gen_ai.request.model": "m",
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.streaming": streamed,
        "gen_ai.prompt.0.role": "system",
        "gen_ai.prompt.0.content": "be brief",
        "gen_ai.prompt.1.role": "user",
        "gen_ai.prompt.1.content": "one two three",
        "gen_ai.response.model": "m",
        "gen_ai.completion.0.role": "assistant",
        "gen_ai.completion.0.content": REPLY,
        "gen_ai.completion.0.finish_reason": "stop",
        "prompt_token_ids": PROMPT_IDS,
        "response_token_ids": ids_of(REPLY),
    }
    attributes = _attributes(span)
    assert {key: attributes.get(key) for key in expected} == expected
    assert str(span.attributes["gen_ai.response.id"]).startswith("chatcmpl-")
    logprobs = json.loads(str(span.attributes["logprobs.content"]))
    assert [entry["logprob"] for entry in logprobs] == [-0.5] * 3
    if streamed:
        assert span.attributes["llm.openai.stream.content_length"] == len(REPLY)
        assert "llm.openai.stream.complete" not in span.attributes
        assert span.attributes["gen_ai.streaming.time_to_first_token"] >= 0  # type: ignore[operator]
    else:
        assert span.attributes["gen_ai.usage.prompt_tokens"] == len(PROMPT_IDS)
        assert span.attributes["gen_ai.usage.total_tokens"] == len(PROMPT_IDS) + 3


ARGUMENTS: dict[str, Any] = {"model": "m", "messages": PROMPT, "temperature": 0.5}


async def test_plain(server: FakeVLLM, tracer: OtelTracer) -> None:
    async with tracer.trace_context():
        completion = _client(server).chat.completions.create(**ARGUMENTS)
    (span,) = tracer.get_last_trace()
    _check(span)
    assert completion.choices[0].message.content == REPLY
    # Nothing is there that was not asked for.
    assert completion.model_extra == {}
    assert completion.choices[0].model_extra == {}
    assert completion.choices[0].logprobs is None


async def test_async(server: FakeVLLM, tracer: OtelTracer) -> None:
    async with tracer.trace_context(), _async_client(server) as client:
        completion = await client.chat.completions.create(**ARGUMENTS)
    _check(tracer.get_last_trace()[0])
    assert completion.model_extra == {}


async def test_streamed(server: FakeVLLM, tracer: OtelTracer) -> None:
    async with tracer.trace_context():
        with _client(server).chat.completions.create(**ARGUMENTS, stream=True) as stream:
            chunks = list(stream)
        assert isinstance(stream, openai.Stream)
        emit_reward(1.0)
    call, reward = tracer.get_last_trace()
    _check(call, streamed=True)
    assert reward.name == "agentlightning.annotation"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == REPLY
    assert all(not chunk.model_extra and not chunk.choices[0].model_extra for chunk in chunks)
    assert all(chunk.choices[0].logprobs is None for chunk in chunks)


async def test_streamed_async(server: FakeVLLM, tracer: OtelTracer) -> None:
    async with tracer.trace_context(), _async_client(server) as client:
        stream = await client.chat.completions.create(**ARGUMENTS, stream=True)
        chunks = [chunk async for chunk in stream]
    _check(tracer.get_last_trace()[0], streamed=True)
    assert len(chunks) == server_chunks(REPLY)


def server_chunks(reply: str) -> int:
    return len(reply.split()) + 2


async def test_raw_responses(server: FakeVLLM, tracer: OtelTracer) -> None:
    async with tracer.trace_context(), _async_client(server) as client:
        raw = _client(server).chat.completions.with_raw_response.create(**ARGUMENTS)
        assert raw.status_code == 200
        assert raw.parse() is raw.parse()
        assert raw.parse().model_extra == {}
        assert raw.parse().choices[0].message.content == REPLY
        raw_async = await client.chat.completions.with_raw_response.create(**ARGUMENTS)
        assert raw_async.parse().choices[0].message.content == REPLY
        raw_stream = _client(server).chat.completions.with_raw_response.create(**ARGUMENTS, stream=True)
        assert len(list(raw_stream.parse())) == server_chunks(REPLY)
    first, second, third = tracer.get_last_trace()
    _check(first)
    _check(second)
    _check(third, streamed=True)


async def test_streaming_response_wrapper(server: FakeVLLM, tracer: OtelTracer) -> None:
    async with tracer.trace_context():
        with _client(server).chat.completions.with_streaming_response.create(**ARGUMENTS) as response:
            assert response.parse().choices[0].message.content == REPLY
    _check(tracer.get_last_trace()[0])


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("how", ["read", "text", "iter_bytes", "iter_lines"])
async def test_bodies_that_the_caller_reads(
    server: FakeVLLM, tracer: OtelTracer, how: str, streamed: bool
) -> None:
    async with tracer.trace_context(), _async_client(server) as client:
        with _client(server).chat.completions.with_streaming_response.create(
            **ARGUMENTS, stream=streamed
        ) as response:
            read = getattr(response, how)()
            plain = read if isinstance(read, (bytes, str)) else list(read)
        async with client.chat.completions.with_streaming_response.create(
            **ARGUMENTS, stream=streamed
        ) as awaited:
            pending = getattr(awaited, how)()
            if how in ("read", "text"):
                assert type(await pending) is type(plain)
            else:
                assert [part async for part in pending]
        # All of it has been recorded once it has been read.
        spans = tracer.get_last_trace()
    assert REPLY.split()[0] in str(plain)
    assert len(spans) == 2
    for span in spans:
        _check(span, streamed=streamed)


async def test_a_body_that_is_not_read_to_its_end(server: FakeVLLM, tracer: OtelTracer) -> None:
    async with tracer.trace_context():
        with _client(server).chat.completions.with_streaming_response.create(
            **ARGUMENTS, stream=True
        ) as response:
            for line in response.iter_lines():
                if "three" in line:
                    break
    (span,) = tracer.get_last_trace()
    assert span.attributes["llm.openai.stream.complete"] is False
    assert str(span.attributes["gen_ai.completion.0.content"]).startswith("three")
    assert _attributes(span)["prompt_token_ids"] == PROMPT_IDS


async def test_parse_with_a_format(server: FakeVLLM, tracer: OtelTracer) -> None:
    class Answer(BaseModel):
        x: int = 7

    async with tracer.trace_context():
        client = _client(server)
        completion = client.chat.completions.parse(model="m", messages=PROMPT, response_format=Answer)
        assert completion.choices[0].message.parsed == Answer()
        with pytest.raises(openai.LengthFinishReasonError):
            client.chat.completions.parse(model="cut", messages=PROMPT, response_format=Answer)
    parsed, cut = tracer.get_last_trace()
    assert parsed.attributes["gen_ai.completion.0.content"] == "{}"
    # The model's part went well; what the SDK made of it is the caller's.
    assert cut.status.status_code == "OK"
    assert cut.attributes["gen_ai.completion.0.finish_reason"] == "length"


async def test_several_choices(server: FakeVLLM, tracer: OtelTracer) -> None:
    async with tracer.trace_context():
        for streamed in (False, True):
            answer = _client(server).chat.completions.create(**ARGUMENTS, n=2, stream=streamed)
            if streamed:
                list(answer)
    for span in tracer.get_last_trace():
        assert span.attributes["gen_ai.completion.0.content"] == REPLY
        assert span.attributes["gen_ai.completion.1.content"] == f"{REPLY} 1"
        assert _attributes(span)["response_token_ids"] == ids_of(REPLY)
        assert _attributes(span)["response_token_ids.1"] == ids_of(f"{REPLY} 1")
        assert len(json.loads(str(span.attributes["logprobs.content.1"]))) == 4


@pytest.mark.parametrize("streamed", [False, True])
async def test_tools(server: FakeVLLM, tracer: OtelTracer, streamed: bool) -> None:
    async with tracer.trace_context():
        client = _client(server)
        answer = client.chat.completions.create(**ARGUMENTS, tools=[TOOL], stream=streamed)  # type: ignore[list-item]
        if streamed:
            list(answer)
        call = {"id": "call-1", "type": "function", "function": {"name": "add", "arguments": '{"x": 1}'}}
        history: list[Any] = [
            *PROMPT,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call-1", "content": "2"},
        ]
        client.chat.completions.create(model="m", messages=history, tools=[TOOL])  # type: ignore[list-item]
    tool, asked, answered = tracer.get_last_trace()
    assert tool.name == "tool_call.add"
    assert tool.parent_id == asked.span_id
    assert tool.attributes == {
        "tool.name": "add",
        "tool.parameters": '{"x": 1}',
        "tool.call.id": "call-1",
        "tool.call.type": "function",
    }
    prefix = "gen_ai.request.functions.0"
    assert asked.attributes[f"{prefix}.name"] == "add"
    assert asked.attributes[f"{prefix}.description"] == "adds"
    assert json.loads(str(asked.attributes[f"{prefix}.parameters"])) == TOOL["function"]["parameters"]
    assert asked.attributes["gen_ai.completion.0.finish_reason"] == "tool_calls"
    assert "gen_ai.completion.0.content" not in asked.attributes
    assert asked.attributes["gen_ai.completion.0.tool_calls.0.arguments"] == '{"x": 1}'
    assert _attributes(asked)["response_token_ids"] == [1, 2, 3]
    assert answered.attributes["gen_ai.prompt.2.tool_calls.0.name"] == "add"
    assert "gen_ai.prompt.2.content" not in answered.attributes
    assert answered.attributes["gen_ai.prompt.3.tool_call_id"] == "call-1"


async def test_pictures_stay_json(server: FakeVLLM, tracer: OtelTracer) -> None:
    parts = [{"type": "text", "text": "what"}, {"type": "image_url", "image_url": {"url": "data:x"}}]
    async with tracer.trace_context():
        _client(server).chat.completions.create(model="m", messages=[{"role": "user", "content": parts}])  # type: ignore[list-item]
    assert json.loads(str(tracer.get_last_trace()[0].attributes["gen_ai.prompt.0.content"])) == parts


async def test_errors_are_the_caller_s_and_in_the_span(server: FakeVLLM, tracer: OtelTracer) -> None:
    def fail() -> openai.NotFoundError:
        with pytest.raises(openai.NotFoundError) as caught:
            _client(server).chat.completions.create(model="bad", messages=PROMPT)
        return caught.value

    without = fail()
    async with tracer.trace_context():
        recorded = fail()
        with pytest.raises(openai.APIConnectionError):
            openai.OpenAI(
                base_url="http://127.0.0.1:9/v1", api_key="k", max_retries=0
            ).chat.completions.create(model="m", messages=PROMPT)
    assert (str(recorded), recorded.status_code, recorded.body) == (str(without), 404, without.body)
    refused, unreachable = tracer.get_last_trace()
    assert refused.status.status_code == "ERROR"
    assert "does not exist" in (refused.status.description or "")
    assert refused.events[0].attributes["exception.type"] == "openai.NotFoundError"
    assert refused.attributes["gen_ai.prompt.1.content"] == "one two three"
    assert unreachable.status.status_code == "ERROR"


async def test_a_server_that_refuses_the_extras_is_asked_without(
    server: FakeVLLM, tracer: OtelTracer
) -> None:
    async with tracer.trace_context():
        completion = _client(server).chat.completions.create(model="no-extras", messages=PROMPT)
    assert completion.choices[0].message.content == REPLY
    (span,) = tracer.get_last_trace()
    assert span.status.status_code == "OK"
    assert "prompt_token_ids" not in span.attributes


@pytest.mark.parametrize("how", ["break", "close", "leave"])
async def test_streams_that_are_not_read_to_their_end(server: FakeVLLM, tracer: OtelTracer, how: str) -> None:
    async with tracer.trace_context():
        stream = _client(server).chat.completions.create(**ARGUMENTS, stream=True)
        for chunk in stream:
            if chunk.choices[0].delta.content:
                break
        if how == "close":
            stream.close()
        elif how == "leave":
            del stream
        emit_reward(1.0)
    spans = {span.name: span for span in tracer.get_last_trace()}
    span = spans["openai.chat.completion"]
    assert span.attributes["llm.openai.stream.complete"] is False
    assert span.attributes["gen_ai.completion.0.content"] == "three"
    assert _attributes(span)["response_token_ids"] == ids_of("three")
    assert (span.end_time or 0) <= (spans["agentlightning.annotation"].start_time or 0)


async def test_a_stream_that_breaks(server: FakeVLLM, tracer: OtelTracer) -> None:
    async with tracer.trace_context():
        stream = _client(server).chat.completions.create(model="breaks", messages=PROMPT, stream=True)
        with pytest.raises(Exception, match=r"(?i)peer closed|connection|incomplete"):
            list(stream)
    (span,) = tracer.get_last_trace()
    assert span.status.status_code == "ERROR"
    assert span.attributes["gen_ai.completion.0.content"] == REPLY


async def test_what_the_caller_asks_for_stays(server: FakeVLLM, tracer: OtelTracer) -> None:
    async with tracer.trace_context():
        completion = _client(server).chat.completions.create(
            **ARGUMENTS, logprobs=True, extra_body={"return_token_ids": True}
        )
    assert completion.model_extra == {"prompt_token_ids": PROMPT_IDS}
    assert completion.choices[0].logprobs is not None
    _check(tracer.get_last_trace()[0])


async def test_outside_of_a_trace_nothing_is_done(server: FakeVLLM, tracer: OtelTracer) -> None:
    _client(server).chat.completions.create(**ARGUMENTS)
    assert server.probes == 0
    assert "return_token_ids" not in server.requests[0]


async def test_servers_are_asked_once_who_they_are(tracer: OtelTracer) -> None:
    with FakeVLLM(owned_by="somebody") as stranger, FakeVLLM(owned_by="agentlightning") as ours:
        async with tracer.trace_context():
            for server in (stranger, ours):
                for _ in range(3):
                    _client(server).chat.completions.create(**ARGUMENTS)
        assert (stranger.probes, ours.probes) == (1, 1)
        assert all("return_token_ids" not in r and "logprobs" not in r for r in stranger.requests)
        assert all(r["return_token_ids"] is True and r["logprobs"] is True for r in ours.requests)
    stranger_spans, our_spans = tracer.get_last_trace()[:3], tracer.get_last_trace()[3:]
    assert all("prompt_token_ids" not in span.attributes for span in stranger_spans)
    assert all("prompt_token_ids" in span.attributes for span in our_spans)


@pytest.mark.parametrize("status", [500, 503, 429, 408])
async def test_a_server_that_gives_no_answer_is_asked_again_but_not_at_once(
    server: FakeVLLM,
    tracer: OtelTracer,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, asking.__name__)
    now = 1000.0
    # For the module alone: event loops live by the real clock.
    clock = SimpleNamespace(monotonic=lambda: now, time=time.time)
    monkeypatch.setattr(asking, "time", clock)
    server.models_status = status
    async with tracer.trace_context(), _async_client(server) as client:
        for _ in range(2):
            _client(server).chat.completions.create(**ARGUMENTS)
            await client.chat.completions.create(**ARGUMENTS)
        assert server.probes == 1
        now += 31
        _client(server).chat.completions.create(**ARGUMENTS)
        assert server.probes == 2
        server.models_status = 200
        now += 31
        _client(server).chat.completions.create(**ARGUMENTS)
        now += 31
        await client.chat.completions.create(**ARGUMENTS)
        assert server.probes == 3
    spans = tracer.get_last_trace()
    assert ["prompt_token_ids" in span.attributes for span in spans] == [False] * 5 + [True] * 2
    (message,) = [record.getMessage() for record in caplog.records if "token ids" in record.getMessage()]
    assert server.base_url in message
    assert f"HTTP {status}" in message


@pytest.mark.parametrize("status", [401, 403, 404, 405])
async def test_a_server_without_a_list_of_models_is_asked_once(
    server: FakeVLLM, tracer: OtelTracer, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    # For the module alone: event loops live by the real clock.
    clock = SimpleNamespace(monotonic=lambda: now, time=time.time)
    monkeypatch.setattr(asking, "time", clock)
    server.models_status = status
    async with tracer.trace_context():
        for _ in range(3):
            _client(server).chat.completions.create(**ARGUMENTS)
            now += 1000
    assert server.probes == 1


async def test_a_gateway_among_the_resources_is_not_asked(tracer: OtelTracer) -> None:
    with FakeVLLM(owned_by="somebody") as gateway, FakeVLLM(owned_by="somebody") as judge:
        token = active_resources.set({"main": ProxyLLM(endpoint=gateway.base_url, model="m")})
        try:
            async with tracer.trace_context():
                routed = gateway.base_url.replace("/v1", "/rollout/r/attempt/a/v1")
                openai.OpenAI(base_url=routed, api_key="k").chat.completions.create(**ARGUMENTS)
                _client(judge).chat.completions.create(**ARGUMENTS)
        finally:
            active_resources.reset(token)
        assert gateway.probes == 0
        assert gateway.requests[0]["return_token_ids"] is True
        # The judge is somebody else's, gateway or not.
        assert "return_token_ids" not in judge.requests[0]


def test_the_patch_is_taken_back() -> None:
    original = openai.OpenAI.request, openai.AsyncOpenAI.request
    store = InMemoryLightningStore()
    with OtelTracer().lifespan(store):
        with OtelTracer().lifespan(store):
            assert openai.OpenAI.request is not original[0]
        assert openai.OpenAI.request is not original[0]
    assert (openai.OpenAI.request, openai.AsyncOpenAI.request) == original
    assert "request" not in openai.OpenAI.__dict__


async def test_a_client_from_before_the_patch_is_recorded(server: FakeVLLM) -> None:
    client = _client(server)
    create = client.chat.completions.with_raw_response.create
    tracer = OtelTracer()
    with tracer.lifespan(InMemoryLightningStore()):
        async with tracer.trace_context():
            create(**ARGUMENTS)
        _check(tracer.get_last_trace()[0])


_LATE_IMPORT = """
import asyncio, sys
from agentlightning.tracer import OtelTracer
tracer = OtelTracer()

async def main():
    with tracer.lifespan():
        assert "openai" not in sys.modules
        async with tracer.trace_context():
            import openai
            assert openai.__spec__.loader is openai.__loader__
            client = openai.OpenAI(base_url=sys.argv[1], api_key="k")
            client.chat.completions.create(model="m", messages=[{"role": "user", "content": "a b"}])
    return tracer.get_last_trace()

(span,) = asyncio.run(main())
assert span.attributes["gen_ai.completion.0.content"] == "b a", span
"""


def test_an_import_inside_the_agent_is_recorded(server: FakeVLLM) -> None:
    subprocess.run([sys.executable, "-c", _LATE_IMPORT, server.base_url], check=True, timeout=60)


def test_langchain(server: FakeVLLM, tracer: OtelTracer) -> None:
    langchain_openai = pytest.importorskip("langchain_openai")
    import asyncio

    model = langchain_openai.ChatOpenAI(model="m", base_url=server.base_url, api_key="k", temperature=0.5)

    async def main() -> None:
        async with tracer.trace_context():
            assert model.invoke([("system", "be brief"), ("user", "one two three")]).content == REPLY
            parts = [
                part async for part in model.astream([("system", "be brief"), ("user", "one two three")])
            ]
            assert "".join(str(part.content) for part in parts) == REPLY

    asyncio.run(main())
    plain, streamed = (span for span in tracer.get_last_trace() if span.name == "openai.chat.completion")
    _check(plain)
    assert _attributes(streamed)["response_token_ids"] == ids_of(REPLY)
