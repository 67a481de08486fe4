"""The trainer: components from specs, and the loop from tasks to a summary."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import threading
from typing import Any

import pytest
from fake_vllm import FakeVLLM, ids_of

import agentlightning as agl
from agentlightning.algorithm.fast import RunProgress, RunSummary
from agentlightning.algorithm.utils import batch_iter_over_dataset
from agentlightning.execution import ClientServerExecutionStrategy, SharedMemoryExecutionStrategy
from agentlightning.store import InMemoryLightningStore
from agentlightning.trainer import Trainer, build_component

SHM = {"type": "shm", "main_thread": "algorithm"}


@agl.rollout
def echo(task: float, prompt_template: agl.PromptTemplate) -> float:
    """Returns its task."""
    return task


@agl.rollout
async def failing(task: float, prompt_template: agl.PromptTemplate) -> float:
    if task < 0:
        raise ValueError("negative")
    return task


PROMPT = {"p": agl.PromptTemplate(template="{x}", engine="f-string")}


def _trainer(**kwargs: Any) -> Trainer:
    return Trainer(**{"strategy": SHM, "initial_resources": PROMPT, **kwargs})


# The founding document's example, word for word but for the names that it leaves open.


class MyAgent(agl.LitAgent[Any]):
    async def rollout(self, task, resources, rollout):  # type: ignore[no-untyped-def, override]
        result = await self.process_task(task, resources)
        return result  # noqa: RET504

    async def process_task(self, task: str, resources: Any) -> float:
        from openai import AsyncOpenAI

        llm = resources["llm"]
        async with AsyncOpenAI(base_url=llm.endpoint, api_key="none") as client:
            messages: Any = [{"role": "user", "content": task}]
            answer = await client.chat.completions.create(model=llm.model, messages=messages)
        return float(answer.choices[0].message.content == " ".join(reversed(task.split())))


async def test_the_founding_example_with_a_model() -> None:
    with FakeVLLM() as server:
        llm = agl.LLM(endpoint=server.base_url, model="m")
        trainer = Trainer(initial_resources={"llm": llm})
        trainer.add_agent(MyAgent())
        train_dataset, val_dataset = ["one two", "three four"], ["five six"]
        summary = await trainer.run(train_dataset, val_dataset)
    assert isinstance(summary, RunSummary)
    assert summary.by_status() == {"succeeded": 3, "failed": 0, "cancelled": 0}
    assert (summary.train.rollouts, summary.val.rollouts) == (2, 1)
    assert (summary.train.mean_reward, summary.val.mean_reward) == (1.0, 1.0)
    assert (summary.spans, summary.triplets, summary.prompt_tokens, summary.response_tokens) == (6, 3, 6, 6)
    by_prompt = {triplet.prompt["raw_content"][0]["content"]: triplet for triplet in summary.sample}
    for task in (*train_dataset, *val_dataset):
        triplet = by_prompt[task]
        assert triplet.prompt["token_ids"] == ids_of(task)
        assert triplet.response["token_ids"] == list(reversed(ids_of(task)))
        assert triplet.reward == 1.0
    rollouts = await trainer.store.query_rollouts()
    assert [rollout.rollout_id for rollout in rollouts] == summary.rollout_ids
    assert {rollout.status for rollout in rollouts} == {"succeeded"}
    # Runners are processes of their own.
    workers = await trainer.store.query_workers()
    assert [worker.worker_id for worker in workers] == ["Worker-0"]


class Minimal(agl.LitAgent[Any]):
    """Needs neither resources nor a model, so that a bare `Trainer()` will do."""

    async def rollout(self, task, resources, rollout):  # type: ignore[no-untyped-def, override]
        assert resources == {}
        return float(os.getpid() != task)


async def test_a_bare_trainer() -> None:
    trainer = Trainer()
    trainer.add_agent(Minimal())
    with pytest.raises(ValueError, match="has an agent already"):
        trainer.add_agent(Minimal())
    with pytest.raises(TypeError, match="LitAgent"):
        trainer.add_agent(object())  # type: ignore[arg-type]
    summary = await trainer.run([os.getpid()], [os.getpid()])
    assert summary.by_status()["succeeded"] == 2
    assert summary.train.mean_reward == 1.0


@pytest.mark.parametrize("main_thread", ["algorithm", "runner"])
def test_fit_with_threads(main_thread: str) -> None:
    trainer = _trainer(strategy={"type": "shm", "main_thread": main_thread})
    summary = trainer.fit(echo, [0.25, 0.75], val_dataset=[1.0])
    assert summary.train.mean_reward == 0.5
    assert summary.val.mean_reward == 1.0
    assert summary.train.rewarded == 2


def test_fit_with_processes() -> None:
    summary = Trainer(initial_resources=PROMPT, n_runners=2).fit(failing, [0.25, 0.75, -1.0])
    assert summary.train.mean_reward == 0.5
    assert summary.by_status() == {"succeeded": 2, "failed": 1, "cancelled": 0}


def test_an_agent_that_can_t_be_pickled(caplog: pytest.LogCaptureFixture) -> None:
    class Locked(agl.LitAgent[Any]):
        def __init__(self) -> None:
            super().__init__()
            self.lock = threading.Lock()
            self.seen: list[Any] = []

        def rollout(self, task: Any, resources: Any, rollout: Any) -> float:
            with self.lock:
                self.seen.append(task)
            return 1.0

    agent = Locked()
    summary = Trainer(n_runners=2).fit(agent, [1, 2, 3, 4])
    assert summary.succeeded == 4
    # It ran here, in threads of this process.
    assert sorted(agent.seen) == [1, 2, 3, 4]
    assert "can't be pickled" in caplog.text


def test_fit_uses_the_agent_that_was_added() -> None:
    trainer = _trainer()
    with pytest.raises(ValueError, match="no agent"):
        trainer.fit(train_dataset=[1.0])
    trainer.add_agent(echo)
    assert trainer.fit(train_dataset=[1.0]).succeeded == 1


async def test_fit_inside_a_running_loop() -> None:
    assert _trainer().fit(echo, [0.5]).train.mean_reward == 0.5


_INTERRUPTED = """
import asyncio, os, signal, sys, threading, time
import agentlightning as agl

class Waiting(agl.LitAgent):
    async def rollout(self, task, resources, rollout):
        os.kill(os.getppid(), signal.SIGINT)
        await asyncio.sleep(300)

async def main():
    before = signal.getsignal(signal.SIGINT)
    strategy = {"type": "cs", "graceful_timeout": 0.2}
    print(agl.Trainer(strategy=strategy).fit(Waiting(), [1]))
    assert signal.getsignal(signal.SIGINT) is before
    assert not [thread for thread in threading.enumerate() if thread.name == "trainer" and thread.is_alive()]

if sys.argv[1] == "asyncio.run":
    asyncio.run(main())
else:
    asyncio.new_event_loop().run_until_complete(main())
"""


@pytest.mark.parametrize("how", ["asyncio.run", "run_until_complete"])
def test_ctrl_c_during_fit_inside_a_running_loop(how: str) -> None:
    # One is enough, and it reaches the trainer's process only.
    run = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED, how], stdout=subprocess.PIPE, text=True, timeout=60
    )
    assert (run.returncode, run.stdout) == (0, "None\n")


def test_errors_carry_no_others_that_have_nothing_to_do_with_them() -> None:
    @agl.algo
    async def learn() -> None:
        raise KeyError("algorithm")

    with pytest.raises(KeyError) as caught:
        _trainer(algorithm=learn).fit(echo)
    assert caught.value.__context__ is None


@pytest.mark.parametrize("start", ["fit", "dev", "add_agent"])
def test_what_is_no_agent(start: str) -> None:
    with pytest.raises(TypeError, match=r"write Minimal\(\)"):
        getattr(_trainer(), start)(Minimal)
    with pytest.raises(TypeError, match="LitAgent's instance, got <class 'object'>"):
        getattr(_trainer(), start)(object())


def test_dev_as_in_0_3() -> None:
    trainer = _trainer()
    summary = trainer.dev(echo, [0.1, 0.2, 0.3], val_dataset=[0.4])
    rollouts = asyncio.run(_all(trainer.store))
    assert [(rollout.status, rollout.mode, rollout.resources_id) for rollout in rollouts] == [
        ("succeeded", "train", "default")
    ] * 3 + [("succeeded", "val", "default")]
    assert [rollout.input for rollout in rollouts] == [0.1, 0.2, 0.3, 0.4]
    assert summary.spans == 4


async def _all(store: Any) -> list[Any]:
    return list(await store.query_rollouts())


def test_failures_and_rollouts_without_spans_do_not_stop_the_run() -> None:
    seen: list[RunProgress] = []

    def silent(task: Any, prompt_template: Any) -> None:
        return None

    trainer = _trainer(algorithm=agl.Baseline(on_progress=seen.append))
    summary = trainer.fit(failing, [1.0, -1.0, 1.0], val_dataset=[-1.0])
    assert summary.by_status() == {"succeeded": 2, "failed": 2, "cancelled": 0}
    assert (summary.failed, summary.val.failed, summary.val.mean_reward) == (2, 1, None)
    assert (seen[-1].finished, seen[-1].total, seen[-1].enqueued, seen[-1].succeeded) == (4, 4, 4, 2)
    assert [progress.finished for progress in seen] == sorted(progress.finished for progress in seen)
    summary = _trainer().fit(agl.rollout(silent), [1.0, 2.0])
    assert (summary.succeeded, summary.spans, summary.train.mean_reward) == (2, 0, None)


def test_many_runners_in_one_process_do_not_mix() -> None:
    class Slow(agl.LitAgent[Any]):
        async def rollout(self, task: Any, resources: Any, rollout: Any) -> float:  # type: ignore[override]
            agl.emit_message(str(task))
            await asyncio.sleep(0.02)
            agl.emit_message(str(task))
            return float(task)

    trainer = _trainer(strategy={**SHM, "n_runners": 3})
    assert trainer.n_runners == 3
    summary = trainer.fit(Slow(), list(range(12)))
    assert summary.succeeded == 12

    async def check() -> None:
        for rollout in await trainer.store.query_rollouts():
            first, second, reward = await trainer.store.query_spans(rollout.rollout_id)
            assert agl.get_message_value(first) == agl.get_message_value(second) == str(rollout.input)
            assert agl.get_reward_value(reward) == float(rollout.input)

    asyncio.run(check())


def test_baseline_keeps_the_order_when_the_queue_is_full() -> None:
    trainer = _trainer(algorithm=agl.Baseline(max_queue_length=1, n_epochs=2))
    tasks = [number / 10 for number in range(8)]
    summary = trainer.fit(echo, tasks)
    assert summary.rollouts == 16
    assert [rollout.input for rollout in asyncio.run(_all(trainer.store))] == tasks * 2


def test_baseline_without_tasks(caplog: pytest.LogCaptureFixture) -> None:
    assert _trainer().fit(echo, [], val_dataset=[]) is None
    assert "Both datasets are empty" in caplog.text
    with pytest.raises(ValueError, match="train_split"):
        agl.Baseline(train_split=1.0)


def test_baseline_logs_as_0_3_does(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="agentlightning.algorithm.fast"):
        summary = _trainer(algorithm=agl.Baseline(span_verbosity="key_values")).fit(echo, [0.5])
    rollout_id = summary.rollout_ids[0]
    assert f"[Rollout {rollout_id} | Attempt 1] ID: at-" in caplog.text
    assert "Status: succeeded. Worker: Worker-0" in caplog.text
    assert f"[Rollout {rollout_id} | Attempt 1 | Span " in caplog.text
    assert "#1 (agentlightning.annotation) From " in caplog.text
    assert "Attributes: {'agentlightning.reward.0.name': 'primary'" in caplog.text
    assert f"[Rollout {rollout_id}] Adapted data: []" in caplog.text


def test_baseline_wonders_about_missing_spans_of_what_succeeded_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    trainer = _trainer()

    class CallsOff(agl.LitAgent[Any]):
        async def rollout(self, task: Any, resources: Any, rollout: Any) -> None:  # type: ignore[override]
            if task == "call off":
                await trainer.store.update_rollout(rollout.rollout_id, status="cancelled")

    summary = trainer.fit(CallsOff(), ["call off", "succeed"])
    assert summary.by_status() == {"succeeded": 1, "failed": 0, "cancelled": 1}
    cancelled, succeeded = summary.rollout_ids
    assert f"[Rollout {succeeded}] There are no spans to adapt." in caplog.text
    assert f"[Rollout {cancelled}] There are no spans to adapt." not in caplog.text


def test_an_algorithm_of_one_s_own() -> None:
    @agl.algo
    async def learn(*, store: Any, adapter: Any, initial_resources: Any, train_dataset: Any) -> Any:
        """Learns."""
        await store.update_resources("mine", initial_resources)
        rollout = await store.enqueue_rollout(input=train_dataset[0], mode="train", resources_id="mine")
        (done,) = await store.wait_for_rollouts(rollout_ids=[rollout.rollout_id], timeout=20)
        return done.status, agl.find_final_reward(await store.query_spans(rollout.rollout_id))

    assert learn.__name__ == "learn"
    assert learn.__doc__ == "Learns."
    assert _trainer(algorithm=learn).fit(echo, [0.5]) == ("succeeded", 0.5)
    with pytest.raises(TypeError, match="val_dataset is provided but not supported"):
        _trainer(algorithm=learn).fit(echo, [0.5], val_dataset=[1.0])
    with pytest.raises(TypeError, match="FastAlgorithm"):
        _trainer(algorithm=learn).dev(echo, [0.5])


def test_a_sync_algorithm_s_result_is_discarded() -> None:
    calls: list[Any] = []

    @agl.algo
    def learn(train_dataset: Any) -> str:
        calls.append(train_dataset)
        return "ignored"

    assert _trainer(algorithm=learn).fit(echo, [1.0]) is None
    assert calls == [[1.0]]


def test_an_algorithm_that_fails() -> None:
    @agl.algo
    async def learn() -> None:
        raise KeyError("algorithm")

    with pytest.raises(KeyError, match="algorithm"):
        _trainer(algorithm=learn).fit(echo)


async def test_a_cancelled_run_takes_its_runners_along() -> None:
    trainer = _trainer()
    started = asyncio.Event()
    loop = asyncio.get_running_loop()

    class Slow(agl.LitAgent[Any]):
        async def rollout(self, task: Any, resources: Any, rollout: Any) -> None:  # type: ignore[override]
            loop.call_soon_threadsafe(started.set)
            await asyncio.sleep(60)

    trainer.strategy.graceful_delay = 0.1  # type: ignore[attr-defined]
    trainer.add_agent(Slow())
    running = asyncio.create_task(trainer.run([1]))
    await asyncio.wait_for(started.wait(), 20)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(running, 20)
    (rollout,) = await trainer.store.query_rollouts()
    assert rollout.status == "cancelled"
    assert rollout.attempt.status == "failed"  # type: ignore[union-attr]


def test_hooks_and_back_references() -> None:
    seen: list[Any] = []

    class Watch(agl.Hook):
        async def on_rollout_end(self, *, agent: Any, runner: Any, rollout: Any, spans: Any) -> None:
            seen.append((agent.trainer, agent.runner is runner, rollout.input))

    trainer = _trainer(hooks=Watch())
    trainer.fit(echo, [1.0])
    assert seen == [(trainer, True, 1.0)]
    with pytest.raises(ValueError, match="Trainer has not been set"):
        _ = MyAgent().trainer
    agent = MyAgent()
    agent.set_trainer(Trainer(strategy="shm"))
    with pytest.raises(ValueError, match="no longer valid"):
        _ = agent.trainer


# Components from specs.


class Component:
    def __init__(self, value: int = 1, extra: Any = None) -> None:
        self.value, self.extra = value, extra


class Other:
    def __init__(self) -> None:
        pass


HERE = f"{__name__}.Component"


def _build(spec: Any, **kwargs: Any) -> Any:
    return build_component(spec, expected_type=Component, spec_name="component", **kwargs)


def test_build_component() -> None:
    instance = Component()
    assert _build(instance) is instance
    assert _build(Component, optional_defaults={"value": lambda: 5, "missing": 1 / 1}).value == 5
    assert _build(lambda: Component(3), optional_defaults={"value": 9}).value == 3
    assert _build(HERE, optional_defaults={"value": 4}).value == 4
    assert _build({"type": HERE, "value": 6}).value == 6
    assert _build({"type": "short"}, registry={"short": HERE}).value == 1
    assert _build({"name": "short", "value": 2}, registry={"short": HERE}).value == 2
    assert _build("short", registry={"short": HERE}).value == 1
    assert _build({"value": 8}, dict_requires_type=False, dict_default_cls=Component).value == 8
    assert _build(None, default_factory=lambda: instance) is instance
    assert _build(None, allow_none=True) is None


def test_defaults_that_do_not_apply_are_never_asked_for() -> None:
    def fail() -> None:
        raise AssertionError("asked")

    assert _build({"type": HERE, "value": 1}, optional_defaults={"value": fail, "unknown": fail}).value == 1


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        (None, ValueError, "component cannot be None."),
        ({"value": 1}, ValueError, "component dict must have a 'type' key"),
        (
            lambda: Other(),
            TypeError,
            r"component factory returned <class '.*Other'>, which is not a Component subclass",
        ),
        (f"{__name__}.Other", TypeError, "which is not a Component subclass"),
        (Other, ValueError, "<class 'type'>"),
        (3, ValueError, "Invalid component type: <class 'int'>"),
        ("nodots", ValueError, "not enough values to unpack"),
    ],
)
def test_bad_components(spec: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        _build(spec)


def test_specs_of_the_trainer() -> None:
    trainer = Trainer(adapter={"agent_match": "write", "repair_hierarchy": False})
    assert isinstance(trainer.adapter, agl.TracerTraceToTriplet)
    assert (trainer.adapter.agent_match, trainer.adapter.repair_hierarchy) == ("write", False)
    assert isinstance(trainer.tracer, agl.OtelTracer)
    assert isinstance(trainer.store, InMemoryLightningStore)
    assert isinstance(trainer.strategy, ClientServerExecutionStrategy)
    assert isinstance(trainer.runner, agl.LitAgentRunner)
    assert trainer.runner.tracer is trainer.tracer
    assert trainer.algorithm is None

    trainer = Trainer(
        runner={"type": "agentlightning.runner.LitAgentRunner", "poll_interval": 2.0}, max_rollouts=5
    )
    assert (trainer.runner._poll_interval, trainer.runner._max_rollouts) == (2.0, 5)  # type: ignore[attr-defined]
    trainer = Trainer(
        strategy={"type": "shm", "main_thread": "algorithm", "managed_store": False}, n_runners=4
    )
    assert trainer.strategy.n_runners == 4  # type: ignore[attr-defined]
    trainer = Trainer(strategy="shm", port=1234)
    assert not hasattr(trainer.strategy, "server_port")
    with pytest.raises(ValueError, match="main_thread"):
        Trainer(strategy="shm", n_runners=8)
    with pytest.raises(ValueError, match="Invalid store type: <class 'int'>"):
        Trainer(store=3)
    with pytest.raises(TypeError, match="is not a Tracer subclass"):
        Trainer(tracer=lambda: 3)
    with pytest.raises(TypeError, match="datasets"):
        Trainer().dev(MyAgent(), "http://localhost:1")  # type: ignore[arg-type]


def test_ports_of_the_trainer() -> None:
    mine = ClientServerExecutionStrategy(server_port=1111, n_runners=3)
    trainer = Trainer(strategy=mine, port=2222)
    assert trainer.strategy is mine
    assert mine.server_port == 2222
    assert trainer.n_runners == 3
    assert Trainer(strategy={"type": "cs", "server_port": 3333}, port=1).strategy.server_port == 3333  # type: ignore[attr-defined]
    assert Trainer(port=4444, n_runners=2).strategy.server_port == 4444  # type: ignore[attr-defined]


def test_deprecated_names() -> None:
    with pytest.warns(DeprecationWarning, match="n_workers"):
        assert Trainer(n_workers=3).n_runners == 3
    with pytest.warns(DeprecationWarning, match="max_tasks"):
        trainer = Trainer(max_tasks=3, max_rollouts=4)
    assert trainer.max_tasks == trainer.max_rollouts == 4
    with pytest.warns(DeprecationWarning, match="triplet_exporter"):
        assert Trainer(triplet_exporter={"agent_match": "x"}).adapter.agent_match == "x"  # type: ignore[attr-defined]


def test_strategies_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    strategy = ClientServerExecutionStrategy()
    assert (strategy.role, strategy.server_host, strategy.server_port) == ("both", "localhost", 4747)
    assert strategy.managed_store is True
    monkeypatch.setenv("AGL_CURRENT_ROLE", "runner")
    monkeypatch.setenv("AGL_SERVER_HOST", "10.0.0.1")
    monkeypatch.setenv("AGL_SERVER_PORT", "5555")
    monkeypatch.setenv("AGL_MANAGED_STORE", "0")
    strategy = ClientServerExecutionStrategy()
    assert (strategy.role, strategy.server_host, strategy.server_port) == ("runner", "10.0.0.1", 5555)
    assert strategy.managed_store is False
    assert SharedMemoryExecutionStrategy().managed_store is False
    strategy = ClientServerExecutionStrategy("algorithm", "h", 1, managed_store=True)
    assert (strategy.role, strategy.server_host, strategy.server_port) == ("algorithm", "h", 1)
    assert strategy.managed_store is True
    with pytest.raises(ValueError, match="main_process"):
        ClientServerExecutionStrategy("algorithm", main_process="runner")
    monkeypatch.setenv("AGL_SERVER_PORT", "many")
    with pytest.raises(ValueError, match="AGL_SERVER_PORT"):
        ClientServerExecutionStrategy()
    monkeypatch.setenv("AGL_CURRENT_ROLE", "spectator")
    monkeypatch.setenv("AGL_SERVER_PORT", "1")
    with pytest.raises(ValueError, match="role"):
        ClientServerExecutionStrategy()


def test_batches_cover_the_dataset() -> None:
    dataset = list(range(7))
    batches = batch_iter_over_dataset(dataset, 3)
    seen: list[int] = []
    for _ in range(70):
        batch = next(batches)
        assert len(batch) == len(set(batch)) == 3
        seen += batch
    assert {seen.count(item) for item in dataset} == {30}
    assert sorted(next(batch_iter_over_dataset(dataset, 10))) == dataset
