"""Rollouts of one process never mix, and whatever becomes of the recording, the agent runs as it would
without."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from fake_vllm import FakeVLLM

from agentlightning.emitter import emit_message, emit_reward, find_final_reward, get_message_value, operation
from agentlightning.store import InMemoryLightningStore
from agentlightning.tracer import OtelTracer, get_active_tracer

ROLLOUTS = 64


@pytest.fixture
def server() -> Iterator[FakeVLLM]:
    with FakeVLLM() as server:
        yield server


class _Rollouts:
    """Rollouts that each do a bit of everything, and say in all that they do which one they are."""

    def __init__(self, tracer: OtelTracer, store: InMemoryLightningStore, base_url: str) -> None:
        self.tracer = tracer
        self.store = store
        self.client = openai.OpenAI(base_url=base_url, api_key="k")
        self.base_url = base_url
        self.ids: dict[str, dict[str, str]] = {}

    async def run(self, name: str, *, nested: str | None = None) -> None:
        rollout = await self.store.start_rollout(input=name)
        self.ids[name] = {"rollout_id": rollout.rollout_id, "attempt_id": rollout.attempt.attempt_id}
        async with self.tracer.trace_context(**self.ids[name]):
            assert get_active_tracer() is self.tracer
            with operation(name=name):
                async with openai.AsyncOpenAI(base_url=self.base_url, api_key="k") as client:
                    await asyncio.gather(
                        self.ask(client, name),
                        asyncio.to_thread(self.ask_sync, name),
                        asyncio.create_task(self.say(name)),
                    )
                if nested is not None:
                    await self.run(nested)
            thread = threading.Thread(target=emit_message, args=(name,))
            thread.start()
            thread.join()
            emit_reward(float(name.rpartition("-")[2]))

    async def ask(self, client: openai.AsyncOpenAI, name: str) -> None:
        await client.chat.completions.create(model="m", messages=[{"role": "user", "content": name}])

    def ask_sync(self, name: str) -> None:
        self.client.chat.completions.create(model="m", messages=[{"role": "user", "content": name}])

    async def say(self, name: str) -> None:
        await asyncio.sleep(0)
        emit_message(name)

    async def check(self) -> None:
        for name, ids in self.ids.items():
            spans = await self.store.query_spans(**ids)
            calls = [span for span in spans if span.name == "openai.chat.completion"]
            assert [call.attributes["gen_ai.prompt.0.content"] for call in calls] == [name, name]
            (whole,) = [span for span in spans if span.name == "agentlightning.operation"]
            assert {call.parent_id for call in calls} == {whole.span_id}
            messages = [get_message_value(span) for span in spans]
            assert [message for message in messages if message is not None] == [name, name]
            assert find_final_reward(spans) == float(name.rpartition("-")[2])
            assert len(spans) == 6
            assert len({span.trace_id for span in spans}) == 1
            assert [span.sequence_id for span in spans] == list(range(1, 7))


async def test_rollouts_never_mix(server: FakeVLLM) -> None:
    store = InMemoryLightningStore()
    tracer = OtelTracer()
    with tracer.lifespan(store), ThreadPoolExecutor(8) as pool:
        rollouts = _Rollouts(tracer, store, server.base_url)
        loop = asyncio.get_running_loop()
        work: list[Any] = []
        for number in range(0, ROLLOUTS, 4):
            # In tasks of this loop, two of them one inside of the other, and in loops of other threads.
            work.append(rollouts.run(f"task-{number}"))
            work.append(rollouts.run(f"outer-{number + 1}", nested=f"inner-{number + 2}"))
            run = rollouts.run(f"thread-{number + 3}")
            work.append(loop.run_in_executor(pool, asyncio.run, run))
        await asyncio.gather(*work)
        assert len(rollouts.ids) == ROLLOUTS
        await rollouts.check()
    assert get_active_tracer() is None


# What an agent does with and without us: prints, uses a model, raises. The recording is broken in every way.

_AGENT = """
import asyncio, json, os, sys
import openai

def agent(url, end):
    client = openai.OpenAI(base_url=url, api_key="k", max_retries=0)
    messages = [{"role": "user", "content": "one two three"}]
    create = client.chat.completions.create
    answer = create(model="m", messages=messages)
    print("answer", answer.model_dump_json(exclude={"id", "created"}))
    chunks = list(create(model="m", messages=messages, stream=True))
    print("chunks", [chunk.model_dump_json(exclude={"id", "created"}) for chunk in chunks])
    raw = client.chat.completions.with_raw_response.create(model="m", messages=messages)
    print("raw", sorted(raw.http_response.json()))
    for model in ("bad", "breaks"):
        try:
            print(list(create(model=model, messages=messages, stream=True)))
        except Exception as error:
            print(type(error).__name__, error)
    print("to stderr", file=sys.stderr)
    if end == "raises":
        raise ValueError("the agent's own")
    if end == "exits":
        sys.exit(7)
"""

_BARE = (
    _AGENT
    + """
agent(sys.argv[1], sys.argv[2])
"""
)

_TRACED = (
    _AGENT
    + """
import logging
logging.disable(logging.CRITICAL)
import agentlightning as agl
from agentlightning.instrumentation import calls
from agentlightning.instrumentation.dialects import chat
from agentlightning.store.errors import StoreUnavailableError

def broken(*args, **kwargs):
    raise RuntimeError("an instrumentation that fails")

class Dead(agl.InMemoryLightningStore):
    async def get_many_span_sequence_ids(self, *args): raise StoreUnavailableError("away")
    async def add_many_spans(self, spans): raise StoreUnavailableError("away")

class Full(agl.InMemoryLightningStore):
    async def add_many_spans(self, spans): raise OSError(28, "No space left on device")

def run(end, trouble):
    store = agl.InMemoryLightningStore()
    match trouble:
        case "dead": store = Dead()
        case "full": store = Full()
        case "odd": store.add_many_spans = broken
        case "request": calls.request_attributes = broken
        case "response": calls.response_attributes = broken
        case "events": chat.ChatAssembly.add = broken
        case "whole": chat.Chat.response = broken
        case "begin": calls.Exchange.__init__ = broken
        case "patch": sys.modules["agentlightning.instrumentation.httpx"] = None
    tracer = agl.OtelTracer(flush_timeout=0.2)

    async def main():
        rollout = await agl.InMemoryLightningStore.start_rollout(store, input="x")
        ids = {"rollout_id": rollout.rollout_id, "attempt_id": rollout.attempt.attempt_id}
        async with tracer.trace_context(**ids):
            agent(sys.argv[1], end)

    with tracer.lifespan(store):
        asyncio.run(main())

# Each in a process of its own, which need not import everything again.
for number, case in enumerate(sys.argv[3:]):
    child = os.fork()
    if child == 0:
        for stream, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{sys.argv[2]}/{number}.{name}", os.O_WRONLY | os.O_CREAT), stream)
        run(*case.split(":"))
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
)


def _raised(stderr: str) -> list[str]:
    # Of a traceback, what was raised: the lines before it are those of two different scripts.
    return [line for line in stderr.splitlines() if not line.startswith((" ", "Traceback"))]


def test_the_agent_is_the_same_whatever_breaks(server: FakeVLLM, tmp_path: Path) -> None:
    bare: dict[str, tuple[int, str, list[str]]] = {}
    for end, code in (("returns", 0), ("raises", 1), ("exits", 7)):
        script = [sys.executable, "-c", _BARE, server.base_url, end]
        done = subprocess.run(script, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == code
        assert "answer" in done.stdout
        bare[end] = (code, done.stdout, _raised(done.stderr))
    cases = [
        f"{end}:{trouble}"
        for end, troubles in (
            ("returns", "none dead full odd request response events whole begin patch"),
            ("raises", "none dead request"),
            ("exits", "none full response"),
        )
        for trouble in troubles.split()
    ]
    script = [sys.executable, "-c", _TRACED, server.base_url, str(tmp_path), *cases]
    done = subprocess.run(script, capture_output=True, text=True, timeout=120, check=True)
    codes = [int(line) for line in done.stdout.split()]
    for number, (case, code) in enumerate(zip(cases, codes, strict=True)):
        out, err = ((tmp_path / f"{number}.{name}").read_text() for name in ("out", "err"))
        assert (code, out, _raised(err)) == bare[case.partition(":")[0]], case


_REPORT = """
import asyncio, sys
import agentlightning as agl
from agentlightning.store.errors import StoreUnavailableError

agl.setup_logging("INFO")

class Dead(agl.InMemoryLightningStore):
    async def add_many_spans(self, spans): raise StoreUnavailableError("the store is away")

async def main(tracer):
    for _ in range(2):
        rollout = await store.start_rollout(input="x")
        async with tracer.trace_context(rollout_id=rollout.rollout_id, attempt_id=rollout.attempt.attempt_id):
            for _ in range(3):
                agl.emit_reward(1.0)

store = Dead()
tracer = agl.OtelTracer(flush_timeout=0.2)
with tracer.lifespan(store):
    asyncio.run(main(tracer))
"""


def test_what_was_lost_is_counted_at_the_end() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _REPORT], capture_output=True, text=True, timeout=60, check=True
    )
    said = done.stdout + done.stderr
    assert said.count("3 of 3 spans of attempt") == 2
    assert "6 of 6 spans" in said
    assert "the store is away" in said


def test_the_log_says_what_is_recorded() -> None:
    script = (
        "import agentlightning as agl; agl.setup_logging('INFO');"
        "tracer = agl.OtelTracer(); tracer.init_worker(0); tracer.teardown_worker(0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    said = done.stdout + done.stderr
    assert "OpenAI SDK" in said
    assert "Not installed" in said
