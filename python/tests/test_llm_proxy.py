"""The gateway in Python: 0.3's constructor and methods over the Rust gateway, with real SDK clients."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from types import SimpleNamespace
from typing import Any

import anthropic
import openai
import pytest
from fake_vllm import FakeVLLM, ids_of, reply_to
from llm_calls import booked, models, question, spans_of

import agentlightning as agl
from agentlightning.llm_proxy import (
    AddLogprobs,
    AddReturnTokenIds,
    LightningOpenTelemetry,
    LLMProxy,
    MessageInspectionMiddleware,
    RolloutAttemptMiddleware,
    get_active_llm_proxy,
)


@pytest.mark.asyncio
async def test_calls_of_the_openai_sdk_are_kept_with_their_tokens(proxy: LLMProxy) -> None:
    rollout, client = await booked(proxy)
    answer = await client.chat.completions.create(model="m", messages=question("a b c"))
    assert answer.choices[0].message.content == "c b a"
    assert answer.model_extra is not None
    assert answer.model_extra["prompt_token_ids"] == ids_of("a b c")
    stream = await client.chat.completions.create(model="m", messages=question("d e"), stream=True)
    pieces = [chunk.choices[0].delta.content async for chunk in stream if chunk.choices]
    assert "".join(piece or "" for piece in pieces) == "e d"
    first, second = await spans_of(proxy, rollout)
    for span, text in ((first, "a b c"), (second, "d e")):
        assert span.name == "litellm_request"
        assert span.attributes["prompt_token_ids"] == ids_of(text)
        assert span.attributes["response_token_ids"] == ids_of(reply_to(text))
        assert span.status.status_code == "OK"
    assert [first.sequence_id, second.sequence_id] == [1, 2]
    triplets = agl.TracerTraceToTriplet(llm_call_match="litellm_request").adapt([first, second])
    assert [triplet.response["token_ids"] for triplet in triplets] == [ids_of("c b a"), ids_of("e d")]


@pytest.mark.asyncio
async def test_tools_and_several_choices_come_through_a_stream(proxy: LLMProxy) -> None:
    rollout, client = await booked(proxy)
    tool: Any = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    async with client.chat.completions.stream(model="m", messages=question("a"), tools=[tool]) as stream:
        final = await stream.get_final_completion()
    call = (final.choices[0].message.tool_calls or [])[0]
    assert (call.function.name, json.loads(call.function.arguments)) == ("add", {"x": 1})
    answer = await client.chat.completions.create(model="m", messages=question("a b"), n=2)
    assert [choice.message.content for choice in answer.choices] == ["b a", "b a 1"]
    _, second = await spans_of(proxy, rollout)
    assert second.attributes["agentlightning.gateway.choices.1.token_ids"] == ids_of("b a 1")


@pytest.mark.asyncio
async def test_ten_calls_at_once_have_ten_places(proxy: LLMProxy) -> None:
    rollout, client = await booked(proxy)
    calls = (client.chat.completions.create(model="m", messages=question(f"a {n}")) for n in range(10))
    await asyncio.gather(*calls)
    spans = await spans_of(proxy, rollout)
    assert sorted(span.sequence_id for span in spans) == list(range(1, 11))


@pytest.mark.asyncio
async def test_an_unknown_model_is_400_and_a_bad_one_is_the_servers_error(
    engine: FakeVLLM, proxy: LLMProxy
) -> None:
    rollout, client = await booked(proxy)
    proxy.update_model_list(models(engine, "m", "bad"))
    with pytest.raises(openai.BadRequestError, match="Invalid model name"):
        await client.chat.completions.create(model="other", messages=question("a"))
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        await client.chat.completions.create(model="bad", messages=question("a"))
    (span,) = await spans_of(proxy, rollout)
    assert span.status.status_code == "ERROR"
    assert (await client.models.list()).data[0].id == "bad"


@pytest.mark.asyncio
async def test_every_kind_of_store_takes_the_calls(engine: FakeVLLM, store: agl.LightningStore) -> None:
    proxy = LLMProxy(model_list=models(engine, "m"), store=store)
    await proxy.start()
    try:
        rollout, client = await booked(proxy)
        await client.chat.completions.create(model="m", messages=question("a b"))
        (span,) = await spans_of(proxy, rollout)
        assert span.attributes["response_token_ids"] == ids_of("b a")
    finally:
        await proxy.stop()


@pytest.mark.asyncio
async def test_it_starts_stops_and_starts_again(engine: FakeVLLM, memory: agl.InMemoryLightningStore) -> None:
    proxy = LLMProxy(model_list=models(engine, "m"))
    assert not proxy.is_running()
    with pytest.raises(ValueError, match="Store is not set"):
        await proxy.start()
    proxy.set_store(memory)
    for _ in range(5):
        await proxy.restart()
        assert proxy.is_running()
        assert get_active_llm_proxy() is proxy
        _, client = await booked(proxy)
        assert (await client.chat.completions.create(model="m", messages=question("a b"))).choices
        health = await asyncio.to_thread(urllib.request.urlopen, proxy.server_launcher.health_url)
        assert health.status == 200
    other = LLMProxy(port=proxy.server_launcher._port, model_list=models(engine, "m"), store=memory)
    with pytest.raises(RuntimeError, match="did not start up"):
        await other.start()
    second = LLMProxy(model_list=models(engine, "m"), store=memory)
    await second.start()
    # Several may run in one process.
    assert proxy.is_running()
    assert second.is_running()
    await second.stop()
    await proxy.stop()
    assert not proxy.is_running()


@pytest.mark.asyncio
async def test_several_gateways_of_a_process_keep_to_their_own_models_and_stores(engine: FakeVLLM) -> None:
    with FakeVLLM() as other_engine:
        proxies = [
            LLMProxy(model_list=models(each, "m"), store=agl.InMemoryLightningStore())
            for each in (engine, other_engine)
        ]
        for proxy in proxies:
            await proxy.start()
        rollouts, clients = zip(*[await booked(proxy) for proxy in proxies], strict=True)
        texts = ("a b", "c d")
        calls = zip(clients, texts, strict=True)
        await asyncio.gather(
            *(client.chat.completions.create(model="m", messages=question(text)) for client, text in calls)
        )
        assert [len(each.requests) for each in (engine, other_engine)] == [1, 1]
        for proxy, rollout, text in zip(proxies, rollouts, texts, strict=True):
            (span,) = await spans_of(proxy, rollout)
            assert span.attributes["prompt_token_ids"] == ids_of(text)
        # The calls of one are nothing to the other, paused or stopped.
        await proxies[0].pause()
        assert not proxies[1].state()["paused"]
        await proxies[0].stop()
        assert (await clients[1].chat.completions.create(model="m", messages=question("e"))).choices
        await proxies[1].stop()


@pytest.mark.asyncio
async def test_a_gateway_with_a_key_gives_agents_tokens(
    engine: FakeVLLM, memory: agl.InMemoryLightningStore
) -> None:
    proxy = LLMProxy(model_list=models(engine, "m"), store=memory, key="the-key")
    await proxy.start()
    first = await memory.start_rollout(input="one")
    second = await memory.start_rollout(input="two")
    update = await memory.add_resources({"llm": proxy.as_resource()})
    # As a runner finds it in the store.
    stored = (await memory.get_resources_by_id(update.resources_id) or update).resources["llm"]
    assert isinstance(stored, agl.ProxyLLM)
    for llm in (
        stored.with_attempted_rollout(first),
        proxy.as_resource(first.rollout_id, first.attempt.attempt_id),
    ):
        assert type(llm) is agl.LLM
        assert llm.api_key is not None
        assert "the-key" not in llm.model_dump_json()
        client = openai.AsyncOpenAI(base_url=llm.endpoint, api_key=llm.api_key, max_retries=0)
        assert (await client.chat.completions.create(model="m", messages=question("a"))).choices
        elsewhere = stored.get_base_url(second.rollout_id, second.attempt.attempt_id)
        with pytest.raises(openai.PermissionDeniedError):
            await client.with_options(base_url=elsewhere).chat.completions.create(
                model="m", messages=question("a")
            )
        with pytest.raises(openai.AuthenticationError):
            await client.with_options(api_key="none").chat.completions.create(
                model="m", messages=question("a")
            )
    assert len(await memory.query_spans(first.rollout_id)) == 2
    assert len(await memory.query_spans(second.rollout_id)) == 0
    await proxy.stop()


@pytest.mark.asyncio
async def test_other_machines_are_let_in_on_purpose_only(
    engine: FakeVLLM, memory: agl.InMemoryLightningStore
) -> None:
    for host in ("0.0.0.0", "::"):
        proxy = LLMProxy(host=host, model_list=models(engine, "m"), store=memory)
        with pytest.raises(ValueError, match=r"key=.*insecure=True"):
            await proxy.start()
        assert not proxy.is_running()
    with pytest.raises(agl.InvalidArgumentError, match="key"):
        await LLMProxy(host="0.0.0.0", store=memory, key="two words").start()
    for fix in ({"key": "the-key"}, {"insecure": True}):
        proxy = LLMProxy(host="0.0.0.0", model_list=models(engine, "m"), store=memory, **fix)  # type: ignore[arg-type]
        await proxy.start()
        await proxy.stop()


@pytest.mark.asyncio
async def test_a_running_gateway_takes_another_list(engine: FakeVLLM, proxy: LLMProxy) -> None:
    with FakeVLLM() as newer:
        proxy.update_model_list(models(newer, "m"))
        assert proxy.is_running()
        _, client = await booked(proxy)
        await client.chat.completions.create(model="m", messages=question("a"))
        assert (len(engine.requests), len(newer.requests)) == (0, 1)
    with pytest.raises(agl.InvalidArgumentError, match="litellm_params"):
        proxy.update_model_list([{"model_name": "x"}])  # type: ignore[typeddict-item]


@pytest.mark.asyncio
async def test_calls_wait_while_it_is_paused(proxy: LLMProxy) -> None:
    _, client = await booked(proxy)
    state = await proxy.pause(reason="weights")
    assert (state["paused"], state["inflight"], state["reason"]) == (True, 0, "weights")
    call = asyncio.create_task(client.chat.completions.create(model="m", messages=question("a")))
    while proxy.state()["parked"] == 0:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    assert not call.done()
    proxy.resume()
    assert (await call).choices[0].message.content == "a"
    await proxy.stop()
    with pytest.raises(RuntimeError, match="not running"):
        proxy.resume()


def test_resources_name_the_way_and_the_model(engine: FakeVLLM) -> None:
    proxy = LLMProxy(port=12358, model_list=models(engine, "m"))
    resource = proxy.as_resource(sampling_parameters={"temperature": 0.5})
    assert isinstance(resource, agl.ProxyLLM)
    assert resource.get_base_url() == "http://127.0.0.1:12358"
    assert (resource.model, resource.sampling_parameters) == ("m", {"temperature": 0.5})
    llm = proxy.as_resource("ro-1", "at-1")
    assert type(llm) is agl.LLM
    assert llm.endpoint == "http://127.0.0.1:12358/rollout/ro-1/attempt/at-1"
    with pytest.raises(ValueError, match="both or neither"):
        proxy.as_resource("ro-1")
    proxy.update_model_list(models(engine, "m", "n"))
    assert proxy.as_resource(model="n").model == "n"
    for names in ((), ("m", "n")):
        proxy.update_model_list(models(engine, *names))
        with pytest.raises(ValueError, match="model"):
            proxy.as_resource()


def test_what_cannot_be_is_refused_when_it_is_made() -> None:
    launcher = SimpleNamespace(port=1234, host="127.0.0.1", access_host="name.test")
    proxy = LLMProxy(launcher_args=launcher)
    assert proxy.server_launcher.access_endpoint == "http://name.test:1234"
    with pytest.raises(ValueError, match="launcher_args"):
        LLMProxy(port=1, launcher_args=launcher)
    with pytest.raises(ValueError, match="return_token_ids, opentelemetry, logprobs"):
        LLMProxy(callbacks=["other"])
    with pytest.raises(TypeError, match="cannot be classes of your own"):
        LLMProxy(middlewares=[object])
    with pytest.raises(TypeError, match="cannot be classes of your own"):
        LLMProxy(callbacks=[type("Own", (AddLogprobs,), {})])
    with pytest.raises(ValueError, match="'logprobs' is not among the middlewares"):
        LLMProxy(middlewares=[AddLogprobs])
    with pytest.raises(ValueError, match="launch_mode"):
        LLMProxy(launch_mode="fork")  # type: ignore[arg-type]


def test_classes_that_0_3_has_count_as_their_names() -> None:
    proxy = LLMProxy(
        middlewares=[RolloutAttemptMiddleware, "stream_conversion", MessageInspectionMiddleware],
        callbacks=[AddReturnTokenIds, "logprobs", LightningOpenTelemetry],
    )
    assert proxy.middlewares == ["rollout_attempt", "stream_conversion", "message_inspection"]
    assert proxy.callbacks == ["return_token_ids", "logprobs", "opentelemetry"]


class OwnStore(agl.LightningStore):
    """A store of a user's own, in Python."""


@pytest.mark.asyncio
async def test_a_store_in_python_cannot_be_called(engine: FakeVLLM) -> None:
    proxy = LLMProxy(model_list=models(engine, "m"), store=OwnStore())
    with pytest.raises(TypeError, match="OwnStore"):
        await proxy.start()


@pytest.mark.asyncio
async def test_token_ids_are_not_asked_for_when_told_so(
    engine: FakeVLLM, memory: agl.InMemoryLightningStore
) -> None:
    proxy = LLMProxy(model_list=models(engine, "no-extras"), store=memory, callbacks=["opentelemetry"])
    await proxy.start()
    rollout, client = await booked(proxy)
    answer = await client.chat.completions.create(model="no-extras", messages=question("a"))
    assert answer.choices[0].message.content == "a"
    (span,) = await spans_of(proxy, rollout)
    assert "no token ids" in str(span.attributes["agentlightning.gateway.untrainable"])
    await proxy.stop()


@pytest.mark.asyncio
async def test_an_algorithm_gets_the_gateway_that_the_trainer_was_given(engine: FakeVLLM) -> None:
    seen: list[int] = []

    @agl.rollout
    def agent(task: str, llm: agl.LLM, rollout: agl.AttemptedRollout) -> float:
        client = openai.OpenAI(base_url=llm.get_base_url(), api_key="none")
        answer = client.chat.completions.create(model=llm.model, messages=question(task))
        return float(answer.choices[0].message.content == reply_to(task))

    class Algorithm(agl.Algorithm):
        async def run(self, train_dataset: Any = None, val_dataset: Any = None) -> None:
            proxy, store = self.get_llm_proxy(), self.get_store()
            assert proxy is not None
            await proxy.start()
            await store.add_resources({"llm": proxy.as_resource()})
            rollout = await store.enqueue_rollout(input="a b")
            await store.wait_for_rollouts(rollout_ids=[rollout.rollout_id], timeout=30)
            for span in await store.query_spans(rollout.rollout_id):
                if span.name == "litellm_request":
                    seen.extend(span.attributes["response_token_ids"])  # type: ignore[arg-type]
            await proxy.stop()

    trainer = agl.Trainer(
        algorithm=Algorithm(),
        llm_proxy=LLMProxy(model_list=models(engine, "m")),
        strategy={"type": "shm", "main_thread": "algorithm"},
        n_runners=1,
    )
    await asyncio.to_thread(trainer.fit, agent, ["a b"])
    assert seen == ids_of("b a")


@pytest.mark.asyncio
async def test_anthropics_sdk_talks_to_a_server_of_chat_completions(proxy: LLMProxy) -> None:
    rollout, _ = await booked(proxy)
    routed = proxy.as_resource(rollout.rollout_id, rollout.attempt.attempt_id)
    client = anthropic.AsyncAnthropic(base_url=routed.endpoint, api_key="none", max_retries=0)
    message: Any = {"role": "user", "content": "a b c"}
    answer = await client.messages.create(model="m", max_tokens=20, messages=[message])
    assert [(block.type, block.text) for block in answer.content if block.type == "text"] == [
        ("text", "c b a")
    ]
    assert (answer.stop_reason, answer.usage.input_tokens) == ("end_turn", 3)
    async with client.messages.stream(model="m", max_tokens=20, messages=[message]) as stream:
        text = "".join([piece async for piece in stream.text_stream])
        final = await stream.get_final_message()
    assert text == "c b a"
    assert final.stop_reason == "end_turn"
    tool: Any = {"name": "add", "input_schema": {"type": "object"}}
    async with client.messages.stream(model="m", max_tokens=20, messages=[message], tools=[tool]) as stream:
        final = await stream.get_final_message()
    (call,) = final.content
    assert call.type == "tool_use"
    assert (call.name, call.input) == ("add", {"x": 1})
    counted = await client.messages.count_tokens(model="m", messages=[message])
    assert counted.input_tokens == 3
    with pytest.raises(anthropic.BadRequestError, match="Invalid model name"):
        await client.messages.create(model="other", max_tokens=20, messages=[message])
    first, second, third = await spans_of(proxy, rollout)
    for span in (first, second):
        assert span.attributes["prompt_token_ids"] == ids_of("a b c")
        assert span.attributes["response_token_ids"] == ids_of("c b a")
    assert third.attributes["response_token_ids"] == [1, 2, 3]


@pytest.mark.asyncio
async def test_responses_talk_to_a_server_of_chat_completions(proxy: LLMProxy) -> None:
    rollout, client = await booked(proxy)
    tool: Any = {"type": "function", "name": "add", "parameters": {"type": "object"}, "strict": False}
    first = await client.responses.create(model="m", input="a b c")
    assert first.output_text == "c b a"
    second = await client.responses.create(model="m", input="d e", previous_response_id=first.id)
    assert second.output_text == "e d"
    async with client.responses.stream(model="m", input="f g", previous_response_id=second.id) as stream:
        text = "".join([event.delta async for event in stream if event.type == "response.output_text.delta"])
        final = await stream.get_final_response()
    assert text == final.output_text == "g f"
    async with client.responses.stream(model="m", input="a", tools=[tool]) as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_response()
    (call,) = final.output
    assert call.type == "function_call"
    assert json.loads(call.arguments) == {"x": 1}
    assert "response.function_call_arguments.delta" in kinds
    with pytest.raises(openai.BadRequestError, match="background"):
        await client.responses.create(model="m", input="a", background=True)
    spans = await spans_of(proxy, rollout)
    assert spans[2].attributes["prompt_token_ids"] == ids_of("a b c c b a d e e d f g")
    assert [span.attributes["gen_ai.response.id"] for span in spans[:2]] == [first.id, second.id]


@pytest.mark.asyncio
async def test_every_dialect_gives_triplets_with_token_ids(proxy: LLMProxy) -> None:
    rollout, client = await booked(proxy)
    await client.chat.completions.create(model="m", messages=question("a b"))
    await client.responses.create(model="m", input="c d")
    claude = anthropic.AsyncAnthropic(base_url=str(client.base_url).removesuffix("/v1/"), api_key="none")
    await claude.messages.create(model="m", max_tokens=9, messages=question("e f"))
    spans = await spans_of(proxy, rollout)
    expected = [(ids_of(text), ids_of(reply_to(text))) for text in ("a b", "c d", "e f")]
    # 0.3's tracer adapter has to be told the name that a proxy's spans have.
    for adapter in (agl.TracerTraceToTriplet(llm_call_match="litellm_request"), agl.LlmProxyTraceToTriplet()):
        triplets = adapter.adapt(spans)
        assert [(each.prompt["token_ids"], each.response["token_ids"]) for each in triplets] == expected
