"""SDKs and agents as they are, through the gateway: calls are recorded with the engine's own tokens."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from fake_vllm import FakeVLLM, decoded, ids_of, rendered, rendered_prompt, reply_to
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from llm_calls import GATEWAY, attempted, models, question, spans_of, tokens_of

import agentlightning as agl
from agentlightning.adapter import training_data
from agentlightning.llm_proxy import LLMProxy

NODE = Path(__file__).parents[2] / "tests/node"


async def test_the_blocking_openai_sdk_speaks_every_endpoint(proxy: LLMProxy) -> None:
    rollout, url = await attempted(proxy)

    def calls() -> list[Any]:
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
        said: list[Any] = []
        answer = client.chat.completions.create(model="m", messages=question("a b"))
        said.append(answer.choices[0].message.content)
        chunks = client.chat.completions.create(model="m", messages=question("c d"), stream=True)
        pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
        said.append("".join(pieces))
        said.append(client.completions.create(model="m", prompt="e f").choices[0].text)
        stream = client.completions.create(model="m", prompt="g h", stream=True)
        said.append("".join(chunk.choices[0].text for chunk in stream if chunk.choices))
        first = client.responses.create(model="m", input="i j")
        said.append(first.output_text)
        with client.responses.stream(model="m", input="k l", previous_response_id=first.id) as events:
            said.append(events.get_final_response().output_text)
        said.append(client.embeddings.create(model="m", input=["n", "oo"]).data[1].embedding)
        said.append([model.id for model in client.models.list()] + [client.models.retrieve("m").id])
        return said

    assert await asyncio.to_thread(calls) == [
        "b a", "d c", "f e", "h g", "j i", "l k", [2.0, 0.25], ["m", "m"],
    ]  # fmt: skip
    spans = await spans_of(proxy, rollout)
    prompts = ["a b", "c d", "e f", "g h", "i j", "i j j i k l"]
    replies = ["b a", "d c", "f e", "h g", "j i", "l k"]
    for span, prompt, reply in zip(spans, prompts, replies, strict=False):
        if span.attributes[f"{GATEWAY}dialect"] == "openai.completions":
            # Several prompts in one request are counted together, and in a stream not at all.
            assert span.attributes["prompt_token_ids"] == ids_of(prompt)
            assert span.attributes["response_token_ids"] == ids_of(reply)
        else:
            assert tokens_of(span) == (ids_of(prompt), ids_of(reply))
    assert spans[6].attributes["gen_ai.operation.name"] == "embeddings"
    assert len(spans) == 7


async def test_the_blocking_anthropic_sdk_speaks_messages(proxy: LLMProxy) -> None:
    rollout, url = await attempted(proxy)

    def calls() -> None:
        client = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)
        answer = client.messages.create(model="m", max_tokens=9, messages=question("a b"))
        assert [block.to_dict() for block in answer.content] == [{"type": "text", "text": "b a"}]
        with client.messages.stream(model="m", max_tokens=9, messages=question("c d")) as stream:
            assert "".join(stream.text_stream) == "d c"
        assert client.messages.count_tokens(model="m", messages=question("a b c")).input_tokens == 3
        beta = client.beta.messages.create(model="m", max_tokens=9, messages=question("e f"), betas=["x"])
        assert [block.to_dict() for block in beta.content] == [{"type": "text", "text": "f e"}]
        # A model list in Anthropic's SDK is the same list.
        assert [model.id for model in client.models.list()] == ["m"]

    await asyncio.to_thread(calls)
    spans = await spans_of(proxy, rollout)
    assert [tokens_of(span) for span in spans] == [
        (ids_of("a b"), ids_of("b a")),
        (ids_of("c d"), ids_of("d c")),
        (ids_of("e f"), ids_of("f e")),
    ]


@tool
def add(x: int) -> str:
    """Adds one."""
    return f"so it is {x + 1}"


async def test_langchain_agents_work_with_tools_and_streams(proxy: LLMProxy) -> None:
    rollout, url = await attempted(proxy)
    common: Any = {"model": "m", "base_url": url, "api_key": "none", "max_retries": 0}
    for model in (
        ChatOpenAI(**common),
        ChatOpenAI(**common, use_responses_api=True),
        ChatAnthropic(**common),
    ):
        assert (await model.ainvoke("a b")).text == "b a"
        assert "".join([chunk.text async for chunk in model.astream("c d")]) == "d c"
        with_tools = model.bind_tools([add])
        asked = HumanMessage("e f")
        called = await with_tools.ainvoke([asked])
        assert isinstance(called, AIMessage)
        (call,) = called.tool_calls
        assert (call["name"], call["args"]) == ("add", {"x": 1})
        result = await add.ainvoke(call)
        assert isinstance(result, ToolMessage)
        assert (await with_tools.ainvoke([asked, called, result])).text == "2 is it so"
    spans = await spans_of(proxy, rollout)
    dialects = [span.attributes[f"{GATEWAY}dialect"] for span in spans]
    assert dialects == ["openai.chat"] * 4 + ["openai.responses"] * 4 + ["anthropic.messages"] * 4
    for four in (spans[:4], spans[4:8], spans[8:]):
        first, second, third, fourth = map(tokens_of, four)
        assert first == (ids_of("a b"), ids_of("b a"))
        assert second == (ids_of("c d"), ids_of("d c"))
        assert third == (ids_of("e f"), [1, 2, 3])
        assert fourth == (ids_of("e f so it is 2"), ids_of(reply_to("so it is 2")))
        assert four[2].attributes["gen_ai.completion.0.tool_calls.0.arguments"] == '{"x": 1}'


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js")
async def test_node_sdks_speak_every_endpoint(proxy: LLMProxy) -> None:
    rollout, url = await attempted(proxy)
    command = ["node", "call.mjs", url, "m"]
    run = await asyncio.to_thread(
        subprocess.run, command, cwd=NODE, capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == {
        "chat": "c b a",
        "stream": "e d",
        "tools": "more 1",
        "responses": ["i h", "k j"],
        "completion": "m l",
        "embedding": [1, 0.25],
        "models": ["m"],
        "error": 400,
        "message": [{"type": "text", "text": "q p"}],
        "counted": 2,
        "messages": ["tool_use", {"x": 1}, [{"type": "text", "text": "s r"}]],
    }
    spans = await spans_of(proxy, rollout)
    expected = [
        ("a b c", "c b a"), ("d e", "e d"), ("f g", None), ("f g 1 more", "more 1"), ("h i", "i h"),
        ("h i i h j k", "k j"), ("l m", "m l"), None, ("p q", "q p"), ("p q", None), ("p q r s", "s r"),
    ]  # fmt: skip
    assert len(spans) == len(expected)
    for span, texts in zip(spans, expected, strict=True):
        if texts is not None:
            prompt, reply = texts
            answer = [1, 2, 3] if reply is None else ids_of(reply)
            assert tokens_of(span) == (ids_of(prompt), answer), texts


class Script:
    """A model that says one thing after the other, and remembers what it was asked."""

    def __init__(self, *said: dict[str, Any]) -> None:
        self.said = list(said)
        self.asked: list[dict[str, Any]] = []

    def __call__(self, body: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(body)
        return json.loads(json.dumps(self.said[len(self.asked) - 1]))  # type: ignore[no-any-return]

    def is_one_trajectory(self, spans: list[agl.Span]) -> None:
        """Checks that all calls make one row: each prompt begins with the tokens of all that went before."""
        calls = [span for span in spans if span.name == "litellm_request"]
        assert [tokens_of(span) for span in calls] == [
            (rendered_prompt(body), rendered(message))
            for body, message in zip(self.asked, self.said, strict=True)
        ]
        before: list[int] = []
        for span in calls:
            prompt, response = tokens_of(span)
            assert decoded(prompt).startswith(decoded(before))
            before = prompt + response
        verdict = agl.Span.from_attributes(
            attributes={"agentlightning.reward.0.name": "primary", "agentlightning.reward.0.value": 1.0},
            rollout_id=calls[0].rollout_id,
            attempt_id=calls[0].attempt_id,
            sequence_id=spans[-1].sequence_id + 1,
            name="agentlightning.annotation",
        )
        data = training_data([[*spans, verdict]])
        (row,) = data.rows
        assert row["token_ids"] == before
        trained = [token for token, counts in zip(row["token_ids"], row["mask"], strict=True) if counts]
        assert trained == [token for message in self.said for token in rendered(message)]
        triplets = agl.TracerTraceToTriplet(llm_call_match="litellm_request").adapt(spans)
        assert [triplet.response["token_ids"] for triplet in triplets] == [
            rendered(message) for message in self.said
        ]


def call_of(name: str, arguments: str, call_id: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


# As models write them: blanks, floats without a fraction, large numbers, an order of their own.
READ = '{"path": "a.txt",  "lines": [1, 2.0], "id": 12345678901234567890}'
LIST = '{"z":1,"a": "\\u00e4/ü", "deep": {"b": null, "a": true}}'
IMAGE = "iVBORw0KGgo="


@pytest.mark.parametrize("streams", [False, True])
async def test_an_agent_like_claude_code_makes_one_trajectory(
    streams: bool, engine: FakeVLLM, proxy: LLMProxy
) -> None:
    script = Script(
        {
            "reasoning": "I had better look.",
            "content": "Let me see.",
            "tool_calls": [call_of("read", READ, "toolu-1")],
        },
        # Line breaks before calls are what models like to write, and agents to drop.
        {
            "content": "\n\n",
            "tool_calls": [call_of("list", LIST, "toolu-2"), call_of("read", "{}", "toolu-3")],
        },
        {"reasoning": "Enough.", "content": "  It is done.\n"},
    )
    engine.speak = script
    rollout, url = await attempted(proxy)
    client = anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0)
    cached: Any = {"cache_control": {"type": "ephemeral"}}
    asked: dict[str, Any] = {
        "model": "m",
        "max_tokens": 4096,
        "system": [
            {"type": "text", "text": "You are an agent."},
            {"type": "text", "text": "Be brief.", **cached},
        ],
        "tools": [
            {"name": "read", "description": "Reads a file.", "input_schema": {"type": "object"}},
            {"name": "list", "description": "Lists.", "input_schema": {"type": "object"}, **cached},
        ],
        "thinking": {"type": "enabled", "budget_tokens": 2048},
        "metadata": {"user_id": "u"},
    }
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": IMAGE}}
    messages: list[Any] = [
        {"role": "user", "content": [{"type": "text", "text": "What is in it?"}, image]},
    ]
    turns = 0
    while True:
        turns += 1
        if streams:
            async with client.messages.stream(**asked, messages=messages) as stream:
                message = await stream.get_final_message()
        else:
            message = await client.messages.create(**asked, messages=messages)
        said = [block.to_dict() for block in message.content]
        said = [block for block in said if block["type"] != "text" or str(block["text"]).strip()]
        messages.append({"role": "assistant", "content": said})
        if message.stop_reason != "tool_use":
            break
        results: list[Any] = [
            {
                "type": "tool_result",
                "tool_use_id": block.id,
                "content": [{"type": "text", "text": "42 "}],
                **cached,
            }
            for block in message.content
            if block.type == "tool_use"
        ]
        messages.append({"role": "user", "content": results})
    assert turns == 3
    kinds = [[block["type"] for block in message["content"]] for message in messages]
    assert kinds[1] == ["thinking", "text", "tool_use"]
    assert (kinds[3], kinds[5]) == (["tool_use", "tool_use"], ["thinking", "text"])
    # What the agent got is what the model wrote, number by number.
    assert messages[1]["content"][2]["input"] == json.loads(READ)
    assert json.dumps(messages[1]["content"][2]["input"]) == json.dumps(json.loads(READ))

    spans = await spans_of(proxy, rollout)
    script.is_one_trajectory(spans)
    thought = "gen_ai.completion.0.reasoning_content"
    assert [span.attributes.get(thought) for span in spans if span.name == "litellm_request"] == [
        "I had better look.", None, "Enough.",
    ]  # fmt: skip
    last = script.asked[-1]
    assert [message["role"] for message in last["messages"]] == [
        "system", "user", "assistant", "tool", "assistant", "tool", "tool",
    ]  # fmt: skip
    assert last["messages"][0]["content"] == "You are an agent.\n\nBe brief."
    assert last["messages"][1]["content"][1]["image_url"]["url"] == f"data:image/png;base64,{IMAGE}"
    (blob,) = [span for span in spans if span.name == "agentlightning.blob"]
    assert blob.attributes["agentlightning.blob.data"] == IMAGE


@pytest.mark.parametrize("streams", [False, True])
async def test_a_chain_that_spells_calls_anew_makes_one_trajectory(
    streams: bool, engine: FakeVLLM, proxy: LLMProxy
) -> None:
    script = Script(
        {"content": "Let me see.", "tool_calls": [call_of("read", READ, "call-a")]},
        {
            "content": "And that.",
            "tool_calls": [call_of("list", LIST, "call-b"), call_of("read", "{ }", "call-c")],
        },
        {"content": "Done."},
    )
    engine.speak = script
    rollout, url = await attempted(proxy)
    model = ChatOpenAI(model="m", base_url=url, api_key="none", max_retries=0, streaming=streams)  # type: ignore[arg-type]
    chain = model.bind_tools([{"name": name, "parameters": {"type": "object"}} for name in ("read", "list")])
    history: list[Any] = [HumanMessage("look")]
    spelled_anew = 0
    while True:
        answer = await chain.ainvoke(history)
        assert isinstance(answer, AIMessage)
        history.append(answer)
        if not answer.tool_calls:
            break
        # What LangChain makes of them, and sends.
        spelled_anew += sum(json.dumps(call["args"]) not in (READ, LIST) for call in answer.tool_calls)
        history += [ToolMessage("a.txt", tool_call_id=call["id"]) for call in answer.tool_calls]
    assert (answer.text, spelled_anew) == ("Done.", 3)
    script.is_one_trajectory(await spans_of(proxy, rollout))


async def test_what_tools_were_called_with_is_found_again_after_a_restart(
    engine: FakeVLLM, proxy: LLMProxy
) -> None:
    script = Script({"tool_calls": [call_of("read", READ, "toolu-1")]}, {"content": "Done."})
    engine.speak = script
    rollout, url = await attempted(proxy)
    asked: Any = {
        "model": "m",
        "max_tokens": 99,
        "tools": [{"name": "read", "input_schema": {"type": "object"}}],
    }
    client = anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0)
    first = await client.messages.create(messages=question("look"), **asked)
    await proxy.restart()
    url = proxy.as_resource(rollout.rollout_id, rollout.attempt.attempt_id).endpoint
    client = anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0)
    call = first.content[0].to_dict()
    # In JavaScript all numbers are floats.
    call["input"] = {"lines": [1, 2], "path": "a.txt", "id": 12345678901234567000}
    result = {"type": "tool_result", "tool_use_id": call["id"], "content": "42"}
    history = [
        *question("look"),
        {"role": "assistant", "content": [call]},
        {"role": "user", "content": [result]},
    ]
    await client.messages.create(messages=history, **asked)
    script.is_one_trajectory(await spans_of(proxy, rollout))
    # What the agent has changed is the agent's.
    call["input"]["path"] = "b.txt"
    script.said.append({"content": "Done."})
    await client.messages.create(messages=history, **asked)
    given = script.asked[-1]["messages"][1]["tool_calls"][0]["function"]["arguments"]
    assert json.loads(given)["path"] == "b.txt"


@pytest.mark.parametrize("chained", [True, False], ids=["previous_response_id", "whole history"])
async def test_an_agent_like_codex_makes_one_trajectory(
    chained: bool, engine: FakeVLLM, proxy: LLMProxy
) -> None:
    patch = '{"input":  "*** Begin Patch\\n*** End Patch"}'
    script = Script(
        {
            "reasoning": "I look first.",
            "content": "Looking.",
            "tool_calls": [call_of("shell", '{"command": ["ls",  "-l"], "timeout": 1e3}', "call-a")],
        },
        {"tool_calls": [call_of("apply_patch", patch, "call-b"), call_of("agents__spawn", "{}", "call-c")]},
        {"reasoning": "That is all.", "content": "Done."},
    )
    engine.speak = script
    rollout, url = await attempted(proxy)
    client = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0)
    asked: dict[str, Any] = {
        "model": "m",
        "instructions": "You are an agent.",
        "tools": [
            {"type": "function", "name": "shell", "parameters": {"type": "object"}, "strict": False},
            {"type": "custom", "name": "apply_patch", "description": "Patches files."},
            {
                "type": "namespace",
                "name": "agents",
                "description": "Sub-agents.",
                "tools": [{"type": "function", "name": "spawn", "parameters": {"type": "object"}}],
            },
        ],
        "reasoning": {"effort": "medium", "summary": "auto"},
        "store": chained,
        "include": ["reasoning.encrypted_content"],
        "parallel_tool_calls": True,
        "prompt_cache_key": "k",
    }
    history: list[Any] = [
        {"role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]},
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "Fix it."},
                {"type": "input_image", "image_url": f"data:image/png;base64,{IMAGE}", "detail": "auto"},
            ],
        },
    ]
    new, previous, kinds = history, openai.omit, []
    while True:
        given = new if chained else history
        async with client.responses.stream(**asked, input=given, previous_response_id=previous) as stream:
            response = await stream.get_final_response()
        kinds.append([item.type for item in response.output])
        for item in response.output:
            if item.to_dict().get("call_id") == "call-c":
                assert (item.to_dict()["namespace"], item.to_dict()["name"]) == ("agents", "spawn")
        if chained:
            previous = response.id  # type: ignore[assignment]
        new = [
            {
                "type": "function_call_output" if item.type == "function_call" else "custom_tool_call_output",
                "call_id": item.call_id,
                "output": "a.txt",
            }
            for item in response.output
            if item.type in ("function_call", "custom_tool_call")
        ]
        history += [item.to_dict() for item in response.output] + new
        if not new:
            break
    assert kinds == [
        ["reasoning", "message", "function_call"],
        ["custom_tool_call", "function_call"],
        ["reasoning", "message"],
    ]
    assert response.output_text == "Done."
    spans = await spans_of(proxy, rollout)
    script.is_one_trajectory(spans)
    calls = script.asked[-1]["messages"][4]["tool_calls"]
    assert [call["function"]["arguments"] for call in calls] == [patch, "{}"]
    assert "".join(map(str, spans)).count(IMAGE) == 1


async def test_what_a_tool_shows_goes_along(engine: FakeVLLM, proxy: LLMProxy) -> None:
    script = Script({"tool_calls": [call_of("look", "{}", "call-a")]}, {"content": "A dot."})
    engine.speak = script
    rollout, url = await attempted(proxy)
    client = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0)
    tools: Any = [{"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": False}]
    first = await client.responses.create(model="m", input="Look.", tools=tools)
    shown: Any = [
        {"type": "input_text", "text": "here"},
        {"type": "input_image", "image_url": f"data:image/png;base64,{IMAGE}"},
    ]
    output: Any = {"type": "function_call_output", "call_id": "call-a", "output": shown}
    await client.responses.create(model="m", input=[output], previous_response_id=first.id, tools=tools)
    told = script.asked[1]["messages"][2:]
    assert [message["role"] for message in told] == ["tool", "user"]
    assert told[0]["content"] == "here"
    assert told[1]["content"][0]["image_url"]["url"].endswith(IMAGE)
    script.is_one_trajectory(await spans_of(proxy, rollout))


async def test_structured_answers_are_asked_for_in_every_dialect(engine: FakeVLLM, proxy: LLMProxy) -> None:
    _, url = await attempted(proxy)
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    client = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0)
    text: Any = {"format": {"type": "json_schema", "name": "n", "schema": schema}}
    await client.responses.create(model="m", input="a", text=text)
    claude = anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0)
    config: Any = {"format": {"type": "json_schema", "schema": schema}}
    await claude.messages.create(model="m", max_tokens=9, messages=question("a"), output_config=config)
    for request in engine.requests:
        assert request["response_format"]["json_schema"]["schema"] == schema


async def test_hosted_tools_are_refused_by_name_to_every_sdk(engine: FakeVLLM, proxy: LLMProxy) -> None:
    _, url = await attempted(proxy)
    client = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0)
    with pytest.raises(openai.BadRequestError, match="web_search"):
        await client.responses.create(model="m", input="a", tools=[{"type": "web_search"}])
    claude = anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0)
    with pytest.raises(anthropic.BadRequestError, match="web_search_20250305"):
        await claude.messages.create(
            model="m",
            max_tokens=9,
            messages=question("a"),
            tools=[{"type": "web_search_20250305", "name": "web_search"}],
        )
    assert engine.requests == []
    dropping = models(engine, "m")
    dropping[0]["litellm_params"]["drop_hosted_tools"] = True
    proxy.update_model_list(dropping)
    rollout, url = await attempted(proxy)
    client = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0)
    answer = await client.responses.create(model="m", input="a b", tools=[{"type": "web_search"}])
    assert answer.output_text == "b a"
    assert "tools" not in engine.requests[0]
    (span,) = await spans_of(proxy, rollout)
    assert span.attributes[f"{GATEWAY}dropped_tools"] == ["web_search"]


async def test_every_sdk_raises_when_a_stream_breaks_off(engine: FakeVLLM, proxy: LLMProxy) -> None:
    proxy.update_model_list(models(engine, "breaks"))
    rollout, url = await attempted(proxy)
    client = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0)
    claude = anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0)

    async def chat() -> None:
        async for _ in await client.chat.completions.create(
            model="breaks", messages=question("a b"), stream=True
        ):
            pass

    async def responses() -> None:
        async with client.responses.stream(model="breaks", input="a b") as stream:
            await stream.get_final_response()

    async def messages() -> None:
        async with claude.messages.stream(model="breaks", max_tokens=9, messages=question("a b")) as stream:
            await stream.get_final_message()

    for call, error in (
        (chat, openai.APIError),
        (responses, openai.APIError),
        (messages, anthropic.APIError),
    ):
        with pytest.raises(error, match=f"model server {engine.base_url} broke off.*tried once"):
            await call()
    assert len(engine.requests) == 3
    for span in await spans_of(proxy, rollout):
        assert span.attributes[f"{GATEWAY}outcome"] == "broken_off"
        assert span.status.status_code == "ERROR"
        assert span.attributes["gen_ai.completion.0.content"] == "b a"


async def test_every_sdk_is_told_who_failed_and_how_often(engine: FakeVLLM, proxy: LLMProxy) -> None:
    params = {"model": "hosted_vllm/m", "api_base": engine.base_url, "num_retries": 1}
    proxy.update_model_list([{"model_name": "m", "litellm_params": params}])
    _, url = await attempted(proxy)
    client = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0)
    claude = anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0)
    calls = (
        client.chat.completions.create(model="m", messages=question("a")),
        client.responses.create(model="m", input="a"),
        claude.messages.create(model="m", max_tokens=9, messages=question("a")),
    )
    told = f"not now .the model server {engine.base_url}, tried 2 times"
    for call in calls:
        engine.failures = [503, 503]
        with pytest.raises((openai.InternalServerError, anthropic.InternalServerError), match=told):
            await call


async def test_a_drain_says_what_it_waited_for(engine: FakeVLLM, proxy: LLMProxy) -> None:
    go = asyncio.Event()
    loop = asyncio.get_running_loop()

    def wait(body: dict[str, Any]) -> dict[str, Any]:
        asyncio.run_coroutine_threadsafe(go.wait(), loop).result(60)
        return {"content": "late"}

    engine.speak = wait
    proxy.update_model_list(models(engine, "m"))
    rollout, url = await attempted(proxy)
    client = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0)
    call = asyncio.create_task(client.chat.completions.create(model="m", messages=question("a")))
    while not engine.requests:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    state = await proxy.pause(drain=0.05, reason="weights")
    (waiting,) = state["waiting_for"]
    assert (state["inflight"], state["paused"]) == (1, True)
    for part in (rollout.rollout_id, rollout.attempt.attempt_id, "model m"):
        assert part in waiting["call"]
    assert waiting["seconds"] > 0
    draining = asyncio.create_task(proxy.pause(drain=60.0))
    go.set()
    assert (await draining)["waiting_for"] == []
    assert (await call).choices[0].message.content == "late"
