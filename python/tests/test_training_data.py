"""Training data: out of traces, out of stores of every kind, over the server, and into a trainer."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from fake_vllm import FakeVLLM
from store_server import StoreServer

import agentlightning as agl
from agentlightning.adapter import (
    advantages,
    batches,
    pack,
    to_atif,
    to_conversations,
    to_preference_pairs,
    training_arrays,
    training_data,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "remote_trainer"))


def call(place: int, prompt: list[int], response: list[int], said: str = "q", answer: str = "a") -> agl.Span:
    return agl.Span.from_attributes(
        attributes={
            "gen_ai.response.id": f"x{place}",
            "gen_ai.prompt.0.role": "user",
            "gen_ai.prompt.0.content": said,
            "gen_ai.completion.0.role": "assistant",
            "gen_ai.completion.0.content": answer,
            "prompt_token_ids": prompt,
            "response_token_ids": response,
            "logprobs.content": json.dumps([{"token": "t", "logprob": -0.5} for _ in response]),
        },
        rollout_id="ro",
        attempt_id="at",
        sequence_id=place,
        name="openai.chat.completion",
    )


def reward(place: int, value: float) -> agl.Span:
    return agl.Span.from_attributes(
        attributes={"agentlightning.reward.0.name": "primary", "agentlightning.reward.0.value": value},
        rollout_id="ro",
        attempt_id="at",
        sequence_id=place,
        name="agentlightning.annotation",
    )


def spans(value: float, answer: str = "a") -> list[agl.Span]:
    return [
        call(1, [1, 2], [3], answer=answer),
        call(2, [1, 2, 3, 4], [5, 6], answer=answer),
        reward(3, value),
    ]


async def fill(store: agl.LightningStore, rewards: list[float]) -> list[str]:
    """Rollouts of one group that have ended with these rewards."""
    ids = []
    for value in rewards:
        started = await store.start_rollout("task", mode="train")
        where = {"rollout_id": started.rollout_id, "attempt_id": started.attempt.attempt_id}
        await store.add_many_spans([span.model_copy(update=where) for span in spans(value)])
        await store.update_attempt(started.rollout_id, started.attempt.attempt_id, status="succeeded")
        ids.append(started.rollout_id)
    return ids


def test_rows_of_traces() -> None:
    data = training_data([spans(1.0), spans(0.0)], estimator="rloo", group_by="none")
    assert [row["token_ids"] for row in data.rows] == [[1, 2, 3, 4, 5, 6]] * 2
    assert data.rows[0]["mask"] == [0, 0, 1, 0, 1, 1]
    assert data.rows[0]["logprobs"] == [0, 0, -0.5, 0, -0.5, -0.5]
    assert data.report["trained_tokens"] == 6
    with pytest.raises(ValueError, match="max_lenght"):
        training_data([spans(1.0)], max_lenght=3)
    with pytest.raises(ValueError, match=r"agents\.include"):
        training_data([spans(1.0)], agents={"include": ["re:("]})


def test_arrays_are_the_rows() -> None:
    arrays = training_arrays([spans(1.0)], level="transition")
    assert len(arrays) == 2
    assert arrays.offsets.tolist() == [0, 3, 9]
    assert arrays.token_ids.tolist() == [1, 2, 3, 1, 2, 3, 4, 5, 6]
    assert arrays.mask.tolist() == [0, 0, 1, 0, 0, 0, 0, 1, 1]
    assert arrays.logprobs.dtype == np.float32
    assert arrays.logprobs[2] == -0.5
    assert arrays.rewards.tolist() == [1.0, 1.0]
    assert arrays.weights.tolist() == [1 / 3] * 2
    empty = training_arrays([[]])
    assert (len(empty), empty.offsets.tolist()) == (0, [0])
    unjudged = training_arrays([spans(1.0)[:2]], train_on=["missing_reward"])
    assert np.isnan(unjudged.rewards).all()
    assert np.isnan(unjudged.advantages).all()
    with pytest.raises(ValueError, match="select"):
        training_arrays([spans(1.0)], select={})


async def test_arrays_of_a_store(store: agl.LightningStore) -> None:
    import asyncio

    ids = await fill(store, [1.0, 0.0, 0.5])
    await store.enqueue_rollout("waiting")
    arrays = await asyncio.to_thread(training_arrays, store, estimator="dr_grpo")
    assert arrays.rollout_ids == ids, "those that have ended, in order"
    assert arrays.rewards.tolist() == [1.0, 0.0, 0.5]
    assert arrays.advantages.tolist() == [0.5, -0.5, 0.0]
    assert len(set(arrays.groups)) == 1
    assert arrays.report["rollouts_used"] == 3
    some = await asyncio.to_thread(training_arrays, store, select={"min_reward": 0.5, "mode_in": ["train"]})
    assert some.rollout_ids == [ids[0], ids[2]]
    with pytest.raises(ValueError, match="estimator"):
        await asyncio.to_thread(training_arrays, store, estimator="best")


def post(url: str, body: Any) -> Any:
    request = urllib.request.Request(
        f"{url}/v1/agl/training-data", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        return answer.headers["Content-Type"], answer.read()


async def test_the_route(memory: agl.InMemoryLightningStore) -> None:
    import asyncio

    server = agl.LightningStoreServer(memory, "127.0.0.1", 0)
    await server.start()
    try:
        (rollout_id,) = await fill(memory, [1.0])
        kind, body = await asyncio.to_thread(
            post, server.endpoint, {"select": {"rollout_id_in": [rollout_id]}}
        )
        assert kind == "application/json"
        (row,) = json.loads(body)["rows"]
        assert (row["rollout_id"], row["token_ids"]) == (rollout_id, [1, 2, 3, 4, 5, 6])
        kind, body = await asyncio.to_thread(post, server.endpoint, {"format": "arrow"})
        assert kind == "application/vnd.apache.arrow.stream"
        assert b"agl.report" in body
        for bad, status in (
            ({"options": {"level": "x"}}, 422),
            ({"options": {"agents": {"include": ["re:("]}}}, 400),
        ):
            with pytest.raises(urllib.error.HTTPError) as refused:
                await asyncio.to_thread(post, server.endpoint, bad)
            assert refused.value.code == status
    finally:
        await server.stop()


def test_conversations_pairs_and_atif() -> None:
    good, bad = spans(1.0, "right"), spans(0.0, "wrong")
    told = to_conversations([good])
    assert told[0]["messages"] == [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "right"},
    ]
    # Of one group, for they have the same rollout id and nothing else to go by.
    (pair, *_) = to_preference_pairs([bad, good])
    assert pair["chosen"] == [{"role": "assistant", "content": "right"}]
    assert pair["rejected"] == [{"role": "assistant", "content": "wrong"}]
    assert to_preference_pairs([bad, good], margin=2.0) == []
    (trajectory,) = to_atif([good])
    assert trajectory["schema_version"] == "ATIF-v1.6"
    assert [step["source"] for step in trajectory["steps"]][:2] == ["user", "agent"]
    assert trajectory["steps"][1]["metrics"]["completion_token_ids"] == [3]
    # Made of the models in the package harbor; `make test-readers` asks those themselves.
    schema = json.loads((Path(__file__).parent / "schemas" / "atif.json").read_text(encoding="utf-8"))
    jsonschema.validate(trajectory, schema)
    assert [step["step_id"] for step in trajectory["steps"]] == [1, 2, 3]
    del trajectory["steps"][1]["source"]
    with pytest.raises(jsonschema.ValidationError, match="source"):
        jsonschema.validate(trajectory, schema)


def test_advantages_and_packing() -> None:
    assert advantages("rloo", ["a", "a", "b"], [1.0, 0.0, None]) == [1.0, -1.0, None]
    with pytest.raises(ValueError, match="estimator"):
        advantages("best", ["a"], [1.0])
    with pytest.raises(ValueError, match="one for each rollout"):
        advantages("grpo", ["a"], [])
    assert pack([3, 4, 2, 1], 6) == [([0, 2, 3], [0, 3, 5, 6]), ([1], [0, 4])]
    assert pack([3, 3], 6, batches=[(0, 1), (1, 2)]) == [([0], [0, 3]), ([1], [0, 3])]
    with pytest.raises(ValueError, match="batch"):
        pack([3], 6, batches=[(0, 2)])
    cut = batches(["a", "a", "a", "b", "c", "c"], 2)
    assert cut == [(0, 3), (3, 6)], "no group is parted"
    assert pack([1] * 6, 6, cut) == [([0, 1, 2], [0, 1, 2, 3]), ([3, 4, 5], [0, 1, 2, 3])]
    assert batches([], 2) == []


class FakeTrainer:
    """A trainer elsewhere: takes .npz files of rows, and names the model to go on with."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []
        steps = self.steps

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with np.load(io.BytesIO(body)) as data:
                    steps.append({name: data[name] for name in data.files})
                answer = json.dumps({"model": f"fake-{len(steps)}"}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> FakeTrainer:
        self._thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def address() -> Iterator[str]:
    """Where a store is served, by a process of its own."""
    server = StoreServer("--backend", "memory")
    server.start()
    yield server.url
    server.stop(signal.SIGINT)


def test_an_example_backend_drives_a_trainer(address: str) -> None:
    import backend

    assert backend.__file__ is not None
    assert len(Path(backend.__file__).read_text(encoding="utf-8").splitlines()) < 150
    with FakeVLLM() as engine, FakeTrainer() as elsewhere:
        llm = agl.LLM(endpoint=engine.base_url, model="fake")
        algorithm = backend.RemoteTraining(backend.RemoteTrainer(elsewhere.url), llm, steps=2, group_size=2)
        trainer = agl.Trainer(
            n_runners=1,
            algorithm=algorithm,
            tracer=agl.OtelTracer(),
            strategy="shm",
            # Served elsewhere, so that the training data come over the route.
            store=agl.LightningStoreClient(address),
        )
        trainer.fit(backend.agent, train_dataset=[{"word": "yes"}, {"word": "no"}])
        asked = {request["model"] for request in engine.requests}
    assert [step["rows"] for step in algorithm.history] == [4, 4]
    assert algorithm.history[0]["rewards"] == [1.0] * 4
    assert asked == {"fake", "fake-1"}, "the second step ran with the model that the first one made"
    first = elsewhere.steps[0]
    assert first["offsets"][-1] == len(first["token_ids"]) == len(first["mask"]) > 0
    assert 0 < first["mask"].sum() < len(first["mask"])
    assert (first["logprobs"][first["mask"] == 1] == -0.5).all()


def run(*arguments: str) -> str:
    """What `agl` prints."""
    command = [sys.executable, "-m", "agentlightning.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_commands_export_and_import(tmp_path: Path, address: str) -> None:
    logged = [
        {
            "session_id": session,
            "request": {"model": "m", "messages": [{"role": "user", "content": f"say {session}"}]},
            "response": {
                "id": f"chatcmpl-{session}",
                "prompt_token_ids": [1, 2],
                "choices": [
                    {"message": {"role": "assistant", "content": session}, "token_ids": [token]},
                ],
            },
            "reward": value,
        }
        for session, token, value in (("yes", 3, 1.0), ("no", 4, 0.0))
    ]
    log = tmp_path / "calls.jsonl"
    log.write_text("\n".join(json.dumps(record) for record in logged), encoding="utf-8")
    run("import", str(log), "--store", address, "--format", "openai-log", "--mode", "val")

    def exported(kind: str, *options: str) -> list[Any]:
        return [json.loads(line) for line in run("export", kind, "--store", address, *options).splitlines()]

    rows = exported("trajectories")
    assert [row["token_ids"] for row in rows] == [[1, 2, 3], [1, 2, 4]]
    first = rows[0]["rollout_id"]
    for options, count in (
        (["--mode", "val"], 2),
        (["--mode", "train"], 0),
        (["--status", "failed"], 0),
        (["--min-reward", "0.5"], 1),
        (["--max-reward", "0.5"], 1),
        (["--since", "4000000000"], 0),
        (["--until", "4000000000"], 2),
        (["--rollout", first], 1),
        (["--agent", "writer"], 0),
        (["--not-agent", "writer"], 2),
    ):
        assert len(exported("trajectories", *options)) == count, options
    report = tmp_path / "report.json"
    (chat,) = exported("messages", "--min-reward", "1", "--report", str(report))
    assert [message["content"] for message in chat["messages"]] == ["say yes", "yes"]
    assert json.loads(report.read_text(encoding="utf-8"))["written"] == 1
    buffers = tmp_path / "rows"
    run("export", "trajectories", "--store", address, "--format", "npy", "--out", str(buffers))
    assert np.load(buffers / "token_ids.npy", mmap_mode="r").tolist() == [1, 2, 3, 1, 2, 4]
