"""The whole loop against a store server that is killed in the middle of it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_vllm import FakeVLLM, ids_of, reply_to
from store_server import StoreServer

import agentlightning as agl
from agentlightning.types import Span

TASKS = [f"task number {index} of the run" for index in range(40)]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[StoreServer]:
    server = StoreServer("--path", str(tmp_path / "e2e.db"))
    server.start()
    yield server
    with contextlib.suppress(AssertionError, ProcessLookupError):
        server.stop(signal.SIGKILL)


class ReversingAgent(agl.LitAgent[str]):
    """Has the model say the task backwards, with the plain OpenAI SDK."""

    def rollout(self, task: str, resources: agl.NamedResources, rollout: agl.Rollout) -> float:
        from openai import OpenAI

        llm = resources["llm"]
        assert isinstance(llm, agl.LLM)
        client = OpenAI(base_url=llm.endpoint, api_key="none")
        answer = client.chat.completions.create(model=llm.model, messages=[{"role": "user", "content": task}])
        return float(answer.choices[0].message.content == reply_to(task))


class Acknowledged:
    """Writes to the store from a thread of its own, and remembers what it was told is kept."""

    def __init__(self, url: str) -> None:
        self.rollouts: list[str] = []
        self.spans: list[tuple[str, str]] = []
        self._url = url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._write()))

    async def _write(self) -> None:
        store = agl.LightningStoreClient(self._url)
        while not self._stop.is_set():
            attempted = await store.start_rollout(input="written by the side")
            self.rollouts.append(attempted.rollout_id)
            span = Span.from_attributes(
                attributes={"n": len(self.spans)},
                rollout_id=attempted.rollout_id,
                attempt_id=attempted.attempt.attempt_id,
                sequence_id=1,
            )
            if await store.add_span(span) is not None:
                self.spans.append((attempted.rollout_id, span.span_id))
        await store.close()

    def __enter__(self) -> Acknowledged:
        self._thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._stop.set()
        self._thread.join()


@pytest.mark.timeout(180)
def test_nothing_acknowledged_is_lost_when_the_server_is_killed(server: StoreServer) -> None:
    killed_at: list[int] = []

    def kill_once(progress: agl.RunProgress) -> None:
        if progress.finished >= len(TASKS) // 4 and not killed_at:
            killed_at.append(progress.finished)
            threading.Thread(target=kill_and_restart).start()

    def kill_and_restart() -> None:
        assert server.stop(signal.SIGKILL) == -signal.SIGKILL
        threading.Event().wait(1.0)
        server.start()

    # A claim whose answer was lost with the server is nobody's: after a silence it is made again.
    config = agl.RolloutConfig(unresponsive_seconds=3.0, max_attempts=3, retry_condition=["unresponsive"])
    with FakeVLLM() as llm, Acknowledged(server.url) as side:
        trainer = agl.Trainer(
            algorithm=agl.Baseline(on_progress=kill_once, rollout_config=config),
            n_runners=2,
            store=agl.LightningStoreClient(server.url),
            strategy=agl.ClientServerExecutionStrategy(n_runners=2, managed_store=False),
            initial_resources={"llm": agl.LLM(endpoint=llm.base_url, model="fake")},
        )
        summary = trainer.fit(ReversingAgent(), train_dataset=TASKS)

    assert killed_at
    assert killed_at[0] < len(TASKS)
    assert summary.succeeded == len(TASKS)
    assert summary.train.mean_reward == 1.0
    assert len(side.rollouts) > 1
    asyncio.run(check(server.url, summary.rollout_ids, side))
    assert server.stop(signal.SIGTERM) == 0


async def check(url: str, rollout_ids: list[str], side: Acknowledged) -> None:
    store = agl.LightningStoreClient(url)
    for task, rollout_id in zip(TASKS, rollout_ids, strict=True):
        rollout = await store.get_rollout_by_id(rollout_id)
        assert rollout is not None
        assert (rollout.input, rollout.status) == (task, "succeeded")
        attempts = await store.query_attempts(rollout_id)
        assert [attempt.sequence_id for attempt in attempts] == list(range(1, len(attempts) + 1))
        spans = await store.query_spans(rollout_id, "latest")
        call = next(span for span in spans if span.name == "openai.chat.completion")
        assert call.attributes["response_token_ids"] == ids_of(reply_to(task))
        assert agl.find_final_reward(spans) == 1.0
    for rollout_id in side.rollouts:
        assert await store.get_rollout_by_id(rollout_id) is not None
    for rollout_id, span_id in side.spans:
        assert [span.span_id for span in await store.query_spans(rollout_id)] == [span_id]
    await store.close()


def test_what_was_enqueued_is_there_after_the_end_of_the_process(tmp_path: Path) -> None:
    """A process writes through an SQLite store of its own and is killed; the next one reads."""
    script = """
import asyncio, sys, agentlightning as agl

async def main():
    store = agl.SqliteLightningStore(sys.argv[1])
    while True:
        rollout = await store.enqueue_rollout(input="kept")
        print(rollout.rollout_id, flush=True)

asyncio.run(main())
"""
    db = tmp_path / "own.db"
    process = subprocess.Popen([sys.executable, "-c", script, str(db)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    acknowledged = [process.stdout.readline().strip() for _ in range(50)]
    process.kill()
    acknowledged += [line.strip() for line in process.stdout if line.endswith("\n")]
    process.wait()
    with agl.SqliteLightningStore(db) as store:
        kept: Any = asyncio.run(store.query_rollouts(rollout_id_in=acknowledged))
    assert kept.total == len(acknowledged) >= 50
