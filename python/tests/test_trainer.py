"""The trainer: components from specs, and the loop from tasks to a summary."""

from __future__ import annotations

import asyncio
import io
import logging
import multiprocessing
import os
import re
import runpy
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from fake_vllm import FakeVLLM, ids_of

import agentlightning as agl
from agentlightning.algorithm.fast import RunProgress, RunSummary
from agentlightning.algorithm.utils import batch_iter_over_dataset
from agentlightning.execution import (
    ClientServerExecutionStrategy,
    MultiprocessingEvent,
    SharedMemoryExecutionStrategy,
)
from agentlightning.semconv import AGL_STATE
from agentlightning.store import InMemoryLightningStore
from agentlightning.trainer import Trainer, build_component
from agentlightning.trainer.trainer import _RunnerBundle

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
            spans = await trainer.store.query_spans(rollout.rollout_id)
            first, second, reward = [span for span in spans if span.name != AGL_STATE]
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
    assert "#2 (agentlightning.annotation) From " in caplog.text
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


@pytest.mark.parametrize("strategy", ["cs", SHM])
def test_an_algorithm_that_fails_may_go_again_on_the_same_store(strategy: Any, tmp_path: Path) -> None:
    @agl.algo
    async def learn(*, store: Any, train_dataset: Any) -> list[str]:
        """Goes on where it has failed."""
        done = {rollout.input: rollout for rollout in await store.query_rollouts()}
        for task in train_dataset:
            if task in done:
                continue
            rollout = await store.enqueue_rollout(input=task)
            await store.wait_for_rollouts(rollout_ids=[rollout.rollout_id], timeout=60)
            if task == 2.0 and not done:
                raise KeyError("algorithm")
        return [rollout.status for rollout in await store.query_rollouts()]

    with agl.SqliteLightningStore(tmp_path / "agl.db") as store:
        asyncio.run(store.add_resources(PROMPT))  # type: ignore[arg-type]
        trainer = _trainer(algorithm=learn, store=store, strategy=strategy)
        with pytest.raises(KeyError, match="algorithm"):
            trainer.fit(echo, [1.0, 2.0, 3.0])
        assert trainer.state == "idle"
        assert trainer.fit(echo, [1.0, 2.0, 3.0]) == ["succeeded"] * 3


def test_an_algorithm_s_store_can_be_set() -> None:
    algorithm = agl.Baseline()
    with pytest.raises(ValueError, match="Store has not been set"):
        _ = algorithm.store
    algorithm.store = store = InMemoryLightningStore()
    assert algorithm.store is algorithm.get_store() is store


async def _rollouts_in(trainer: Trainer, status: Any, count: int) -> None:
    while len(await trainer.store.query_rollouts(status_in=[status])) < count:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("strategy", ["cs", {**SHM, "n_runners": 2}])
def test_a_run_is_started_paused_resumed_and_waited_for(strategy: Any) -> None:
    trainer = Trainer(strategy=strategy, initial_resources=PROMPT)
    with pytest.raises(RuntimeError, match="no run to wait for"):
        trainer.wait()
    trainer.pause()
    trainer.start(echo, [0.25, 0.75])
    with pytest.raises(RuntimeError, match="running already"):
        trainer.start(echo, [1.0])
    with pytest.raises(RuntimeError, match="running already"):
        trainer.fit(echo, [1.0])
    asyncio.run(asyncio.wait_for(_rollouts_in(trainer, "queuing", 2), 60))
    assert trainer.state == "paused"
    with pytest.raises(TimeoutError, match="not ended"):
        trainer.wait(0.2)
    assert len(asyncio.run(_all(trainer.store))) == 2
    trainer.resume()
    assert trainer.state in ("running", "idle")
    assert trainer.wait(60).train.mean_reward == 0.5
    assert trainer.state == "idle"


@pytest.mark.parametrize("strategy", ["cs", SHM])
async def test_a_run_is_stopped(strategy: Any) -> None:
    trainer = Trainer(strategy=strategy, initial_resources={})
    trainer.stop()
    assert trainer.state == "idle"

    class Waiting(agl.LitAgent[Any]):
        async def rollout(self, task: Any, resources: Any, rollout: Any) -> None:  # type: ignore[override]
            await asyncio.sleep(300)

    for attribute in ("graceful_timeout", "graceful_delay"):
        if hasattr(trainer.strategy, attribute):
            setattr(trainer.strategy, attribute, 0.2)
    trainer.start(Waiting(), [1, 2])
    await asyncio.wait_for(_rollouts_in(trainer, "running", 1), 60)
    trainer.stop()
    assert trainer.state in ("stopping", "idle")
    assert trainer.wait(60) is None
    rollouts = await _all(trainer.store)
    assert {rollout.status for rollout in rollouts} <= {"cancelled", "failed"}
    attempts = [rollout.attempt for rollout in rollouts if hasattr(rollout, "attempt")]
    assert [(attempt.status, attempt.metadata["reason"]) for attempt in attempts] == [("failed", "cancelled")]


_STARTED = """
import asyncio, os, sys
import agentlightning as agl

class Waiting(agl.LitAgent):
    async def rollout(self, task, resources, rollout):
        os.write(1, f"pid {os.getpid()}\\n".encode())
        await asyncio.sleep(300)

trainer = agl.Trainer(store=agl.SqliteLightningStore(sys.argv[1]), initial_resources={}, n_runners=2)
trainer.start(Waiting(), [1, 2])
while len(asyncio.run(trainer.store.query_rollouts(status_in=["running"]))) < 2:
    pass
"""


def test_a_started_run_ends_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "agl.db"
    script = subprocess.run(
        [sys.executable, "-c", _STARTED, str(path)], stdout=subprocess.PIPE, text=True, timeout=60, check=True
    )
    pids = [int(line.split()[1]) for line in script.stdout.splitlines()]
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    with agl.SqliteLightningStore(path) as store:
        rollouts = asyncio.run(_all(store))
    assert {rollout.status for rollout in rollouts} <= {"cancelled", "failed"}
    assert {rollout.attempt.status for rollout in rollouts} == {"failed"}


@agl.rollout
async def calling(task: float, llm: agl.LLM) -> float:
    """Calls a model, and fails when asked for nothing."""
    from openai import AsyncOpenAI

    if not task:
        raise ValueError("nothing to do")
    async with AsyncOpenAI(base_url=llm.endpoint, api_key="none") as client:
        await client.chat.completions.create(
            model=llm.model, messages=[{"role": "user", "content": "one two three"}]
        )
    return task


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("kind", ["native", "own"])
def test_a_terminal_shows_how_it_goes(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(agl.LightningStoreThreaded):
        """A store that tells nothing by itself."""

        def _target(self) -> Any:
            return _Mute(self.store)

    class _Mute:
        def __init__(self, store: Any) -> None:
            self.store = store

        def __getattr__(self, name: str) -> Any:
            return getattr(self.store, name)

    out = _Terminal()
    monkeypatch.setattr(sys, "stderr", out)
    store: Any = InMemoryLightningStore()
    if kind == "own":
        store = Own(store)
    with FakeVLLM() as server:
        llm = agl.LLM(endpoint=server.base_url, model="m")
        trainer = Trainer(strategy=SHM, store=store, initial_resources={"llm": llm})
        trainer.fit(calling, [0.5, 0.0, 1.5])
    bar, *summary = out.getvalue().rstrip("\n").split("\n")
    last = bar.rpartition("\x1b[K")[2]
    assert last.startswith("━" * 24)
    assert "3/3 rollouts · reward 1.000 · 12 tokens · 1 error · 0:" in last
    assert re.fullmatch(r"3 rollouts in \d+\.\d s: 2 succeeded, 1 failed, 0 cancelled", summary[0])
    assert summary[1:] == [
        "mean reward 1.000 (2), 6 prompt and 6 response tokens",
        "1x ValueError: nothing to do",
    ]


def test_elsewhere_it_is_shown_on_request_only(capsys: pytest.CaptureFixture[str]) -> None:
    _trainer(progress=True).fit(echo, [1.0])
    shown = capsys.readouterr().err
    assert "\r" not in shown
    assert shown.splitlines()[0].endswith(": 1 succeeded, 0 failed, 0 cancelled")
    _trainer().fit(echo, [1.0])
    _trainer(progress=False).fit(echo, [1.0])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_what_a_runner_does_goes_to_processes_of_any_start_method(method: Any) -> None:
    async def main() -> list[str]:
        server = agl.LightningStoreServer(InMemoryLightningStore(), "127.0.0.1", 0)
        await server.start()
        try:
            await server.add_resources(PROMPT)  # type: ignore[arg-type]
            ids = [(await server.enqueue_rollout(input=0.5)).rollout_id for _ in range(2)]
            context = multiprocessing.get_context(method)
            stop = MultiprocessingEvent(ctx=context)
            bundle = _RunnerBundle(Trainer(max_rollouts=5).runner, echo, ())
            process = context.Process(target=_run_bundle, args=(bundle, server.endpoint, stop))
            process.start()
            done = await server.wait_for_rollouts(rollout_ids=ids, timeout=60)
            stop.set()
            await asyncio.to_thread(process.join, 60)
            assert process.exitcode == 0
            return [rollout.status for rollout in done]
        finally:
            await server.stop()

    assert asyncio.run(main()) == ["succeeded"] * 2


def _run_bundle(bundle: Any, endpoint: str, stop: Any) -> None:
    asyncio.run(bundle(agl.LightningStoreClient(endpoint), 3, stop))


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_trainer_runs_in_a_process_of_any_start_method(method: Any) -> None:
    context = multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    process = context.Process(target=_fit_and_tell, args=(queue,))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert queue.get() == 2


def _fit_and_tell(queue: Any) -> None:
    summary = Trainer(initial_resources=PROMPT).fit(echo, [0.25, 0.75])
    queue.put(summary.succeeded)


def test_the_runner_may_bring_the_agent() -> None:
    runner = agl.LitAgentRunner(agl.OtelTracer(), agent=echo, concurrency=4)
    trainer = _trainer(runner=runner)
    assert trainer.fit(train_dataset=[0.5] * 8).train.mean_reward == 0.5
    workers = asyncio.run(_workers(trainer.store))
    assert workers <= {f"Worker-0-{place}" for place in range(4)}


async def _workers(store: Any) -> set[str]:
    return {worker.worker_id for worker in await store.query_workers()}


def test_a_documented_algorithm() -> None:
    path = Path(__file__).parents[2] / "examples" / "algorithms" / "best_prompt.py"
    example = runpy.run_path(str(path))
    trainer = _trainer(algorithm=example["best_prompt"], initial_resources=None)
    assert trainer.fit(example["agent"], [1, 2, 3]) == (1.0, "Do {task}, please.")
    latest = asyncio.run(trainer.store.get_latest_resources())
    assert latest is not None
    assert latest.resources["prompt"].template == "Do {task}, please."  # type: ignore[union-attr]
    # What the documentation shows is what has just been run.
    page = (path.parents[2] / "docs" / "algorithms.md").read_text(encoding="utf-8")
    shown = [block.partition("\n")[2] for block in page.split("```")[1::2]]
    rust = path.parents[2] / "crates" / "agentlightning" / "examples" / "best_prompt.rs"
    # The last is run by test_apo.
    sources = [path, rust, path.parents[1] / "apo" / "main.py"]
    assert len(shown) == len(sources)
    for block, source in zip(shown, sources, strict=True):
        assert block.strip() in source.read_text(encoding="utf-8")


@pytest.mark.parametrize(("kind", "expected"), [("memory", 0), ("sqlite", 1)])
def test_a_pause_is_told_when_a_run_begins(
    kind: str, expected: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def open_store() -> Any:
        return agl.SqliteLightningStore(tmp_path / "agl.db") if kind == "sqlite" else InMemoryLightningStore()

    _trainer(store=open_store()).pause()
    trainer = _trainer(store=open_store())
    trainer.start(echo, [1.0])
    asyncio.run(asyncio.wait_for(_rollouts_in(trainer, "queuing" if expected else "succeeded", 1), 60))
    trainer.resume()
    assert trainer.wait(60).succeeded == 1
    assert caplog.text.count("The store is paused") == expected


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
    # The runner's report may be first, or the algorithm's call-off.
    assert rollout.status in ("cancelled", "failed")
    attempt = rollout.attempt  # type: ignore[union-attr]
    assert (attempt.status, attempt.metadata["reason"]) == ("failed", "cancelled")


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
    # Threads, as many as are asked for; only a single one may have the main thread.
    assert (Trainer(strategy="shm", n_runners=8).strategy.n_runners, trainer.strategy.main_thread) == (
        8,
        "runner",
    )  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="main_thread"):
        Trainer(strategy={"type": "shm", "main_thread": "runner"}, n_runners=8)
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
