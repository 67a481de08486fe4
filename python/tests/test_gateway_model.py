"""SDKs in front of the embedded model: what is recorded are its tokens, and they say what the SDK got."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
import pytest_asyncio
from langchain_openai import ChatOpenAI
from llm_calls import attempted, question, spans_of, tokens_of

import agentlightning as agl
from agentlightning.llm_proxy import LLMProxy

NODE = Path(__file__).parents[2] / "tests/node"
QUESTION = "What is the capital of France?"
PROMPT = f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    """The base URL of `agl model serve`."""
    command = [
        sys.executable,
        "-m",
        "agentlightning.cli",
        "model",
        "serve",
        "--model",
        "smollm2",
        "--port",
        "0",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.search(r"http://\S+/v1", line)
    assert found, line
    yield found.group()
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0


@pytest_asyncio.fixture
async def model(served: str, memory: agl.InMemoryLightningStore) -> AsyncIterator[LLMProxy]:
    """A gateway in front of it."""
    params = {"model": "openai/smollm2", "api_base": served}
    proxy = LLMProxy(model_list=[{"model_name": "smollm2", "litellm_params": params}], store=memory)
    await proxy.start()
    yield proxy
    await proxy.stop()


def encoded(served: str, text: str) -> list[int]:
    """The tokens that the model reads in a text."""
    client = openai.OpenAI(base_url=served, api_key="none")
    extra = {"return_token_ids": True}
    answer = client.completions.create(model="smollm2", prompt=text, max_tokens=1, extra_body=extra)
    ids = (answer.choices[0].model_extra or {})["prompt_token_ids"]
    assert isinstance(ids, list)
    return ids


def spoken(served: str, span: agl.Span) -> str:
    """What the tokens of an answer say, end marks aside; each is looked up by itself."""
    _, response = tokens_of(span)
    content = json.loads(str(span.attributes["logprobs.content"]))
    pieces = [bytes(token.get("bytes") or token["token"].encode()) for token in content]
    assert len(pieces) == len(response)
    text = b"".join(pieces).decode()
    # The ids are those of these pieces.
    assert encoded(served, text) == response
    return text.removesuffix("<|im_end|>")


async def test_every_dialect_of_the_python_sdks(served: str, model: LLMProxy) -> None:
    rollout, url = await attempted(model)
    client = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0)
    claude = anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0)
    short: dict[str, Any] = {"model": "smollm2", "temperature": 0.0}
    said: list[str] = []
    answer = await client.chat.completions.create(messages=question(QUESTION), max_tokens=12, **short)
    said.append(answer.choices[0].message.content or "")
    chunks = await client.chat.completions.create(
        messages=question(QUESTION), max_tokens=12, stream=True, **short
    )
    said.append("".join([chunk.choices[0].delta.content or "" async for chunk in chunks if chunk.choices]))
    async with client.responses.stream(input=QUESTION, max_output_tokens=12, **short) as events:
        said.append((await events.get_final_response()).output_text)
    async with claude.messages.stream(
        model="smollm2", messages=question(QUESTION), max_tokens=12, extra_body={"temperature": 0.0}
    ) as stream:
        said.append(await stream.get_final_text())
    said.append((await client.completions.create(prompt=PROMPT, max_tokens=12, **short)).choices[0].text)
    langchain = ChatOpenAI(base_url=url, api_key="none", max_completion_tokens=12, **short)  # type: ignore[arg-type]
    said.append((await langchain.ainvoke(QUESTION)).text)
    counted = await claude.messages.count_tokens(model="smollm2", messages=question(QUESTION))

    spans = await spans_of(model, rollout)
    assert len(spans) == len(said)
    assert "Paris" in said[0]
    for span, text in zip(spans, said, strict=True):
        prompt, _ = tokens_of(span)
        # The model's template puts a system message of its own in front.
        ids = await asyncio.to_thread(encoded, served, PROMPT)
        assert prompt[-len(ids) :] == ids
        assert await asyncio.to_thread(spoken, served, span) == text
    assert counted.input_tokens == len(tokens_of(spans[0])[0])
    # Greedy, so that all say the same, whatever was spoken.
    assert len({tuple(tokens_of(span)[1]) for span in spans[:4]}) == 1


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js")
async def test_every_dialect_of_the_node_sdks(served: str, model: LLMProxy) -> None:
    rollout, url = await attempted(model)
    command = ["node", "ask.mjs", url, "smollm2", QUESTION]
    run = await asyncio.to_thread(
        subprocess.run, command, cwd=NODE, capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr
    spans = await spans_of(model, rollout)
    assert [await asyncio.to_thread(spoken, served, span) for span in spans] == json.loads(run.stdout)


async def test_a_session_of_messages_is_read_back_turn_by_turn(served: str, model: LLMProxy) -> None:
    rollout, url = await attempted(model)
    claude = anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0)
    history: list[Any] = question("Say hi.")
    for _ in range(2):
        answer = await claude.messages.create(
            model="smollm2",
            max_tokens=8,
            system="Be brief.",
            messages=history,
            extra_body={"temperature": 0.0},
        )
        history += [{"role": "assistant", "content": answer.content}, *question("Again.")]
    first, second = map(tokens_of, await spans_of(model, rollout))
    (end,) = await asyncio.to_thread(encoded, served, "<|im_end|>")
    # An answer that was cut lacks the mark of its end, which the next prompt has.
    before = [*first[0], *(token for token in first[1] if token != end), end]
    assert second[0][: len(before)] == before
