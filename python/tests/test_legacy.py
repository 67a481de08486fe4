"""The client, server, runner and trainer of the time before stores, over real HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from fake_vllm import FakeVLLM

import agentlightning as agl
from agentlightning.semconv import AGL_STATE, LightningSpanAttributes
from agentlightning.store.errors import StoreError
from agentlightning.types import RolloutLegacy

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

LLM = agl.LLM(endpoint="http://localhost:1/v1", model="m")


@pytest_asyncio.fixture
async def server() -> AsyncIterator[agl.AgentLightningServer]:
    server = agl.AgentLightningServer(port=0)
    await server.start()
    yield server
    await server.stop()


def client_of(server: agl.AgentLightningServer) -> agl.AgentLightningClient:
    return agl.AgentLightningClient(server.endpoint, poll_interval=0.01)


def raw(server: agl.AgentLightningServer, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode() if not isinstance(body, bytes) else body
    request = urllib.request.Request(server.endpoint + path, data=data, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_all_of_it_is_deprecated() -> None:
    with pytest.warns(DeprecationWarning, match="AgentLightningServer"):
        agl.AgentLightningServer()
    with pytest.warns(DeprecationWarning, match="AgentLightningClient"):
        client = agl.AgentLightningClient("http://localhost:1/")
    assert client.endpoint == "http://localhost:1"
    with pytest.warns(DeprecationWarning, match="DevTaskLoader"):
        loader = agl.DevTaskLoader([1], {})
    with pytest.warns(DeprecationWarning, match="LegacyAgentRunner"):
        agl.LegacyAgentRunner(Echo(), loader, agl.DummyTracer(), agl.TraceToTriplet())
    with pytest.warns(DeprecationWarning, match="fit_v0"), pytest.raises(ValueError, match="train_data"):
        agl.Trainer().fit_v0(Echo(), 3)
    assert agl.LegacyRunner is agl.LegacyAgentRunner


async def test_a_task_there_and_back(server: agl.AgentLightningServer) -> None:
    client = client_of(server)
    assert await client.get_latest_resources_async() is None
    first = await server.update_resources({"llm": LLM})
    before = time.time()
    rollout_id = await server.queue_task({"q": 1}, mode="train", resources_id=first, metadata={"k": "v"})
    task = await client.poll_next_task_async()
    after = time.time()
    assert task is not None
    assert (task.rollout_id, task.input, task.mode, task.resources_id) == (
        rollout_id,
        {"q": 1},
        "train",
        first,
    )
    # 0.3 does not tell of requeues.
    assert task.create_time is not None
    assert task.last_claim_time is not None
    assert before <= task.create_time <= task.last_claim_time <= after
    assert (task.num_claims, task.num_requeues, task.last_requeue_time) == (1, 0, None)
    assert task.metadata == {"k": "v"}
    assert client.task_count == 1

    update = await client.get_resources_by_id_async(first)
    assert update is not None
    assert update.resources == {"llm": LLM}
    assert await client.get_resources_by_id_async("none") is None
    second = await server.update_resources({"prompt": agl.PromptTemplate(template="{x}", engine="f-string")})
    latest = await client.get_latest_resources_async()
    assert latest is not None
    assert latest.resources_id == second

    assert await server.get_completed_rollout(rollout_id) is None
    waiting = asyncio.ensure_future(server.poll_completed_rollout(rollout_id))
    triplet = agl.Triplet(prompt=[1], response=[2], reward=float("nan"))
    result = RolloutLegacy(rollout_id=rollout_id, task=task, final_reward=0.5, triplets=[triplet])
    answer = await client.post_rollout_async(result)
    assert answer is not None
    assert answer["status"] == "ok"
    # It does not poll: it is told.
    got = await asyncio.wait_for(waiting, 10)
    assert got is not None
    assert (got.final_reward, got.task) == (0.5, task)
    assert await server.retrieve_completed_rollouts() == []


async def test_resources_that_are_not_pinned_are_the_latest(server: agl.AgentLightningServer) -> None:
    await server.update_resources({"llm": LLM})
    await server.queue_task(1)
    task = await client_of(server).poll_next_task_async()
    assert task is not None
    assert task.resources_id is None
    assert task.metadata == {}


async def test_a_task_that_nobody_answers_is_handed_out_again() -> None:
    server = agl.AgentLightningServer(port=0, task_timeout_seconds=0.2)
    await server.start()
    try:
        client = client_of(server)
        rollout_id = await server.queue_task("x")
        first, second = await client.poll_next_task_async(), await client.poll_next_task_async()
        assert first is not None
        assert second is not None
        assert first.rollout_id == second.rollout_id == rollout_id
        assert (second.num_claims, second.num_requeues) == (2, 1)
        assert second.create_time == first.create_time
        assert first.last_claim_time is not None
        assert second.last_requeue_time is not None
        assert second.last_claim_time is not None
        assert first.last_claim_time + 0.2 <= second.last_requeue_time <= second.last_claim_time

        # The first result counts, also of somebody who had been given up, and it counts once.
        for reward in (1.0, 2.0):
            await client.post_rollout_async(RolloutLegacy(rollout_id=rollout_id, final_reward=reward))
        (result,) = await server.retrieve_completed_rollouts()
        assert result.final_reward == 1.0
        assert result.task is not None
        assert (result.task.num_claims, result.task.input) == (2, "x")
        await client.post_rollout_async(RolloutLegacy(rollout_id=rollout_id, final_reward=3.0))
        assert await server.retrieve_completed_rollouts() == []
        await asyncio.sleep(0.3)
        assert raw(server, "GET", "/task") == (200, {"is_available": False, "task": None})
    finally:
        await server.stop()


async def test_a_result_that_nobody_asked_for_is_kept(server: agl.AgentLightningServer) -> None:
    client = client_of(server)
    for reward in (1.0, 2.0):
        await client.post_rollout_async(RolloutLegacy(rollout_id="own", final_reward=reward))
    results = await server.retrieve_completed_rollouts()
    assert [(result.rollout_id, result.final_reward) for result in results] == [("own", 1.0)]


async def test_waiting_for_a_result_ends_in_time(server: agl.AgentLightningServer) -> None:
    rollout_id = await server.queue_task("x")
    assert await server.poll_completed_rollout(rollout_id, timeout=0.05) is None


async def test_what_makes_no_sense_is_told(server: agl.AgentLightningServer) -> None:
    assert raw(server, "GET", "/resources/latest")[0] == 404
    assert raw(server, "GET", "/resources/none") == (404, {"detail": "No resources 'none'."})
    status, answer = raw(server, "GET", "/nonsense")
    assert (status, "GET /task" in answer["detail"]) == (404, True)
    assert raw(server, "POST", "/rollout", b"no json")[0] == 422
    status, answer = raw(server, "POST", "/rollout", {"final_reward": 1})
    assert (status, "rollout_id" in answer["detail"]) == (422, True)
    client = client_of(server)
    client.endpoint += "/nonsense"
    with pytest.raises(StoreError, match="answered 404"):
        await client.post_rollout_async(RolloutLegacy(rollout_id="none"))
    with pytest.raises(RuntimeError, match="running already"):
        await server.start()
    other = agl.AgentLightningServer(port=server.port)
    with pytest.raises(RuntimeError, match=f"can't listen on 127.0.0.1:{server.port}"):
        await other.start()
    with pytest.raises(ValueError, match="endpoint must start with http"):
        agl.AgentLightningClient("localhost:8000")


async def test_many_clients_at_once_get_each_task_once(server: agl.AgentLightningServer) -> None:
    queued = {await server.queue_task(index) for index in range(60)}
    client = client_of(server)
    tasks = await asyncio.gather(*(client.poll_next_task_async() for _ in range(60)))
    assert {task.rollout_id for task in tasks if task is not None} == queued
    results = [RolloutLegacy(rollout_id=rollout_id, final_reward=1.0) for rollout_id in queued]
    await asyncio.gather(*(client.post_rollout_async(result) for result in results))
    assert {result.rollout_id for result in await server.retrieve_completed_rollouts()} == queued


async def test_a_client_outlasts_its_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentlightning.client._RETRY_DELAYS", (0.01,))
    server = agl.AgentLightningServer(port=0)
    await server.start()
    client = client_of(server)
    await server.stop()
    polling = asyncio.ensure_future(client.poll_next_task_async())
    # 0.3 answers None to whatever it could not ask.
    with pytest.raises(agl.StoreUnavailableError, match="can't be reached"):
        await client.get_latest_resources_async()
    assert not polling.done()
    await server.start()
    await server.queue_task("x")
    task = await asyncio.wait_for(polling, 20)
    assert task is not None
    assert task.input == "x"
    await server.stop()


def test_dev_task_loader() -> None:
    given = agl.Task(rollout_id="mine", input="b")
    loader = agl.DevTaskLoader(["a", given], {"llm": LLM})
    tasks = [loader.poll_next_task() for _ in range(3)]
    assert [task and task.rollout_id for task in tasks] == ["local_task_001", "mine", "local_task_001"]
    assert tasks[0] is not None
    update = loader.get_resources_by_id(tasks[0].resources_id or "")
    assert update is not None
    assert update.resources == {"llm": LLM}
    assert loader.get_latest_resources() == update
    with pytest.raises(ValueError, match="'other'"):
        loader.get_resources_by_id("other")
    loader.post_rollout(RolloutLegacy(rollout_id="mine"))
    assert [rollout.rollout_id for rollout in loader.rollouts] == ["mine"]
    with pytest.raises(ValueError, match="at least one task"):
        agl.DevTaskLoader([], {})


# Runners


class Echo(agl.LitAgent[Any]):
    """Answers with what it was told to."""

    def __init__(self, result: Any = 1.0) -> None:
        super().__init__()
        self.result = result
        self.calls: list[Any] = []

    def on_rollout_start(self, task: Any, runner: Any, tracer: Any) -> None:
        self.calls.append(("start", task.rollout_id))

    def on_rollout_end(self, task: Any, rollout: Any, runner: Any, tracer: Any) -> None:
        self.calls.append(("end", rollout.final_reward))

    def training_rollout(self, task: Any, resources: Any, rollout: Any) -> Any:
        self.calls.append((task, sorted(resources), rollout.rollout_id, self.runner is not None))
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


class Old(agl.LitAgent[Any]):
    """Of version 0.1, whose rollouts have an id only."""

    def training_rollout(self, task: Any, rollout_id: str, resources: Any) -> float:  # type: ignore[override]
        agl.emit_reward(0.25)
        assert rollout_id.startswith("local_task")
        return float(task)


class Asynchronous(agl.LitAgent[Any]):
    async def validation_rollout_async(self, task: Any, resources: Any, rollout: Any) -> None:
        await asyncio.sleep(0)
        agl.emit_reward(0.75)


def run_one(agent: agl.LitAgent[Any], task: Any = 0.5, mode: Any = "train") -> RolloutLegacy:
    loader = agl.DevTaskLoader([task], {"llm": LLM})
    if mode != "train":
        loader = agl.DevTaskLoader([agl.Task(rollout_id="r", input=task, mode=mode)], {"llm": LLM})
    else:
        loader = agl.DevTaskLoader(
            [agl.Task(rollout_id="local_task_001", input=task, mode="train")], {"llm": LLM}
        )
    tracer = agl.OtelTracer(instrument=False)
    with tracer.lifespan():
        runner = agl.LegacyAgentRunner(agent, loader, tracer, agl.TracerTraceToTriplet(), worker_id=0)
        assert runner.run() is True
    (rollout,) = loader.rollouts
    return rollout


def _states(rollout: agl.RolloutLegacy) -> list[str]:
    """What the runner has noted, in order."""
    attributes = [span["attributes"] for span in rollout.trace or () if span["name"] == AGL_STATE]
    return [noted[LightningSpanAttributes.STATE_EVENT.value] for noted in attributes]


def test_a_number_is_the_reward() -> None:
    agent = Echo(True)
    rollout = run_one(agent)
    assert (rollout.final_reward, rollout.triplets) == (1.0, None)
    assert _states(rollout) == ["started", "finished"]
    assert rollout.task is not None
    assert agent.calls == [
        ("start", "local_task_001"),
        (0.5, ["llm"], "local_task_001", True),
        ("end", 1.0),
    ]


def test_agents_of_the_first_version() -> None:
    rollout = run_one(Old())
    assert rollout.final_reward == 0.5
    assert rollout.trace is not None
    names = [span["name"] for span in rollout.trace]
    assert names == ["agentlightning.state", "agentlightning.annotation", "agentlightning.state"]
    assert rollout.triplets == []


def test_asynchronous_agents_and_emitted_rewards() -> None:
    rollout = run_one(Asynchronous(), mode="val")
    assert rollout.final_reward == 0.75


def test_other_results() -> None:
    triplets = [agl.Triplet(prompt="p", response="r", reward=0.5)]
    assert run_one(Echo(triplets)).triplets == triplets
    assert run_one(Echo(triplets)).final_reward == 0.5
    assert run_one(Echo([{"name": "span"}])).trace == [{"name": "span"}]
    spans = [agl.Span.from_attributes(attributes=agl.emit_reward(0.125, propagate=False).attributes)]
    by_spans = run_one(Echo(spans))
    assert (by_spans.final_reward, len(by_spans.trace or ())) == (0.125, 1)
    whole = RolloutLegacy(rollout_id="ignored", final_reward=2.0, logs=["l"], metadata={"k": 1})
    rollout = run_one(Echo(whole))
    assert (rollout.rollout_id, rollout.final_reward, rollout.logs) == ("local_task_001", 2.0, ["l"])
    assert rollout.metadata == {"k": 1}
    assert run_one(Echo(None)).final_reward is None


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (ValueError("broken"), "ValueError: broken"),
        ({"a": 1}, "TypeError: Invalid raw result type: <class 'dict'>."),
        ([1, "x"], "TypeError: Invalid raw result type: a list of int, str."),
    ],
)
def test_failures_are_brought_back_too(result: Any, reason: str) -> None:
    rollout = run_one(Echo(result))
    assert rollout.final_reward is None
    assert rollout.metadata == {"failure_reason": reason}
    # What the agent has returned is looked at when it has ended.
    assert _states(rollout) == ["started", "failed" if isinstance(result, Exception) else "finished"]


class Asks(agl.LitAgent[Any]):
    """Asks a model twice, with an SDK that knows nothing of us."""

    def training_rollout(self, task: Any, resources: Any, rollout: Any) -> float:
        from openai import OpenAI

        llm = resources["llm"]
        client = OpenAI(base_url=llm.endpoint, api_key="none")
        for _ in range(2):
            messages: Any = [{"role": "user", "content": str(task)}]
            client.chat.completions.create(model=llm.model, messages=messages)
        agl.emit_reward(1.0)
        return 1.0


async def test_an_agent_from_queue_to_triplets(server: agl.AgentLightningServer) -> None:
    with FakeVLLM() as model:
        await server.update_resources({"llm": agl.LLM(endpoint=model.base_url, model="m")})
        ids = [await server.queue_task(f"question {index}", mode="train") for index in range(3)]
        tracer = agl.OtelTracer()
        with tracer.lifespan():
            runner = agl.LegacyAgentRunner(
                Asks(), client_of(server), tracer, agl.TracerTraceToTriplet(), worker_id=1, max_tasks=3
            )
            # The server answers from threads of its own, so it does not matter who keeps this loop busy.
            assert runner.iter() == 3
    for rollout_id in ids:
        rollout = await server.poll_completed_rollout(rollout_id, timeout=10)
        assert rollout is not None
        assert rollout.final_reward == 1.0
        triplets = rollout.triplets or []
        assert len(triplets) == 2
        assert [triplet.reward for triplet in triplets] == [None, 1.0]
        assert all(triplet.response["token_ids"] for triplet in triplets)


# The trainer


class Counts(agl.LitAgent[Any]):
    def training_rollout(self, task: Any, resources: Any, rollout: Any) -> float:
        return float(task) * 2


@pytest.mark.parametrize("workers", [1, 2])
async def test_the_trainer_works_for_a_server(workers: int, server: agl.AgentLightningServer) -> None:
    await server.update_resources({"llm": LLM})
    ids = [await server.queue_task(index, mode="train") for index in range(4)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = agl.Trainer(
            n_workers=workers, max_tasks=4 // workers, tracer=agl.OtelTracer(instrument=False)
        )
    # 0.3: TypeError, since fit() hands val_dataset on by position.
    await asyncio.to_thread(trainer.fit, Counts(), server.endpoint)
    results = {rollout.rollout_id: rollout for rollout in await server.retrieve_completed_rollouts()}
    assert [results[rollout_id].final_reward for rollout_id in ids] == [0.0, 2.0, 4.0, 6.0]


def test_the_trainer_with_a_loader_and_with_datasets() -> None:
    loader = agl.DevTaskLoader([agl.Task(rollout_id="r", input=3, mode="train")], {})
    trainer = agl.Trainer(dev=True, max_rollouts=2, tracer=agl.OtelTracer(instrument=False))
    trainer.fit_v0(Counts(trained_agents="planner"), "http://localhost:1", dev_data=loader)
    assert [rollout.final_reward for rollout in loader.rollouts] == [6.0, 6.0]
    assert trainer.adapter.agent_match == "planner"
    with pytest.raises(ValueError, match="dev_data must be given"):
        trainer.fit_v0(Counts(), "http://localhost:1")
    with pytest.raises(ValueError, match="train_data must be a URL"):
        agl.Trainer().fit_v0(Counts(), 3)
    summary = agl.Trainer(strategy={"type": "shm", "main_thread": "algorithm"}).fit_v0(Counts(), [1, 2])
    assert summary.rollouts == 2


async def test_interrupting_the_trainer_ends_it(server: agl.AgentLightningServer, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import sys, agentlightning as agl\n"
        "class A(agl.LitAgent):\n"
        "    def rollout(self, task, resources, rollout): return 1.0\n"
        "agl.Trainer(n_workers=2).fit_v0(A(), sys.argv[1])\n"
        "print('ended', flush=True)\n"
    )
    await server.update_resources({"llm": LLM})
    rollout_id = await server.queue_task("x")
    with subprocess.Popen(  # noqa: ASYNC220 - it takes a moment only
        [sys.executable, "-W", "ignore", str(script), server.endpoint],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as trainer:
        assert await server.poll_completed_rollout(rollout_id, timeout=60) is not None
        os.killpg(trainer.pid, signal.SIGINT)
        out, err = await asyncio.to_thread(trainer.communicate, timeout=60)
    assert (trainer.returncode, out) == (0, "ended\n"), err


def test_nothing_is_killed_by_name() -> None:
    # 0.3 kills every process of the machine that has such a name.
    with subprocess.Popen(
        [sys.executable, "-c", "input()", "AgentLightning-x"], stdin=subprocess.PIPE
    ) as other:
        with pytest.warns(DeprecationWarning, match="does nothing"):
            agl.Trainer.kill_orphaned_processes()
        assert other.poll() is None
        other.communicate(b"\n", timeout=20)
