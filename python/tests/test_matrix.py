"""Every tracer with every adapter, store and strategy: each works, or refuses with a reason."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from fake_vllm import FakeVLLM, ids_of

import agentlightning as agl
from agentlightning.trainer import Trainer

TRACERS = {
    "otel": ("agentlightning.tracer", "OtelTracer"),
    "agentops": ("agentlightning.tracer", "AgentOpsTracer"),
    "weave": ("agentlightning.tracer.weave", "WeaveTracer"),
}
STRATEGIES: dict[str, Any] = {
    "shm": {"type": "shm", "main_thread": "algorithm", "n_runners": 2},
    "cs": "cs",
}


class Names(agl.TraceAdapter[list[str]]):
    """An adapter of a user's own."""

    def adapt(self, source: Any) -> list[str]:
        return [span.name for span in source]


def _adapters() -> dict[str, Any]:
    return {
        "tracer": agl.TracerTraceToTriplet(),
        "proxy": agl.LlmProxyTraceToTriplet(),
        "custom": Names(),
    }


class All(agl.TraceAdapter[dict[str, Any]]):
    """What each of the adapters makes of a trace, or why it refuses."""

    def adapt(self, source: Any) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for name, adapter in _adapters().items():
            try:
                made[name] = adapter.adapt(source)
            except ValueError as error:
                made[name] = str(error)
        return made


@agl.rollout
def agent(task: str, llm: agl.LLM) -> float:
    """Calls a model once."""
    from openai import OpenAI

    with OpenAI(base_url=llm.endpoint, api_key="none") as client:
        messages: Any = [{"role": "user", "content": task}]
        answer = client.chat.completions.create(model=llm.model, messages=messages)
    agl.emit_message(str(answer.choices[0].message.content))
    return float(len(task))


@agl.algo
async def adapt(*, store: Any, adapter: Any, initial_resources: Any, train_dataset: Any) -> list[Any]:
    """Runs the tasks, and returns what the adapter makes of their traces."""
    await store.update_resources("initial", initial_resources)
    ids = [(await store.enqueue_rollout(input=task)).rollout_id for task in train_dataset]
    done = await store.wait_for_rollouts(rollout_ids=ids, timeout=60)
    assert [rollout.status for rollout in done] == ["succeeded"] * len(ids)
    return [adapter.adapt(list(await store.query_spans(rollout_id, "latest"))) for rollout_id in ids]


@pytest.fixture(params=list(TRACERS))
def tracer(request: pytest.FixtureRequest) -> Any:
    module, name = TRACERS[request.param]
    try:
        return getattr(import_module(module), name)()
    except (ImportError, AttributeError) as error:
        return pytest.skip(f"{name} is not there: {error}")


@pytest.fixture(params=["memory", "sqlite", "client"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    with ExitStack() as cleanup:
        if request.param == "sqlite":
            yield cleanup.enter_context(agl.SqliteLightningStore(tmp_path / "agl.db"))
            return
        memory = agl.InMemoryLightningStore()
        if request.param == "memory":
            yield memory
            return
        server = agl.LightningStoreServer(memory, "127.0.0.1", 0)
        asyncio.run(server.start())
        cleanup.callback(lambda: asyncio.run(server.stop()))
        yield agl.LightningStoreClient(server.endpoint)


@pytest.mark.parametrize("strategy", list(STRATEGIES))
def test_every_combination(tracer: Any, store: Any, strategy: str) -> None:
    tasks = ["one two", "three", "four five six"]
    with FakeVLLM() as server:
        trainer = Trainer(
            tracer=tracer,
            store=store,
            strategy=STRATEGIES[strategy],
            adapter=All(),
            algorithm=adapt,
            initial_resources={"llm": agl.LLM(endpoint=server.base_url, model="m")},
        )
        traces = trainer.fit(agent, tasks)
    for task, made in zip(tasks, traces, strict=True):
        (triplet,) = made["tracer"]
        assert triplet.prompt["token_ids"] == ids_of(task)
        assert triplet.response["token_ids"] == list(reversed(ids_of(task)))
        assert triplet.reward == float(len(task))
        assert {"agentlightning.message", "agentlightning.annotation"} <= set(made["custom"])
        # It reads token ids, whoever has recorded them.
        (proxied,) = made["proxy"]
        assert proxied.response == {"token_ids": triplet.response["token_ids"]}
        assert (proxied.prompt["token_ids"], proxied.reward) == (triplet.prompt["token_ids"], triplet.reward)
