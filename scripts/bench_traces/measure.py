"""Times the adapters of the agentlightning that this interpreter has, and prints the figures as JSON.

Run by run.py in two environments: that of agentlightning 0.3 from PyPI, and ours. Both get the same spans.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import agentlightning as agl
from agentlightning.adapter import TracerTraceToTriplet

TOKENS = 50_000


def span(number: int, parent: str | None, name: str, start: float, end: float, **attributes: Any) -> agl.Span:
    """A span with attributes whose names have `__` for dots."""
    return agl.Span.from_attributes(
        attributes={key.replace("__", "."): value for key, value in attributes.items()},
        rollout_id="ro",
        attempt_id="at",
        sequence_id=number,
        span_id=f"{number:016x}",
        trace_id="0" * 31 + "1",
        parent_id=parent,
        name=name,
        start_time=start,
        end_time=end,
    )


def words(chance: random.Random, count: int) -> str:
    """A text of that many words."""
    return " ".join(chance.choice(("alpha", "beta", "gamma", "delta", "epsilon")) for _ in range(count))


def call(
    chance: random.Random, number: int, parent: str, history: list[tuple[str, str]], ids: list[int]
) -> agl.Span:
    """A call of a model that carries on a conversation, as AgentOps records it, with the engine's tokens."""
    attributes: dict[str, Any] = {
        "gen_ai.request.type": "chat",
        "gen_ai.system": "OpenAI",
        "gen_ai.request.model": "model",
        "gen_ai.request.temperature": 0.7,
        "gen_ai.request.streaming": False,
    }
    history.append(("user", words(chance, 60)))
    ids.extend(chance.randrange(TOKENS) for _ in range(90))
    for at, (role, text) in enumerate(history):
        attributes[f"gen_ai.prompt.{at}.role"] = role
        attributes[f"gen_ai.prompt.{at}.content"] = text
    answer, response = words(chance, 80), [chance.randrange(TOKENS) for _ in range(120)]
    attributes |= {
        "gen_ai.response.id": f"chatcmpl-{parent}-{number}",
        "gen_ai.response.model": "model",
        "gen_ai.usage.prompt_tokens": len(ids),
        "gen_ai.usage.completion_tokens": len(response),
        "gen_ai.usage.total_tokens": len(ids) + len(response),
        "gen_ai.completion.0.role": "assistant",
        "gen_ai.completion.0.content": answer,
        "gen_ai.completion.0.finish_reason": "stop",
        "prompt_token_ids": list(ids),
        "response_token_ids": response,
    }
    history.append(("assistant", answer))
    ids.extend(response)
    made = span(number, parent, "openai.chat.completion", float(number), number + 0.5)
    made.attributes.update(attributes)
    return made


def rollout(agents: int, calls: int, seed: int = 1) -> list[agl.Span]:
    """A session in which agents hold a conversation each, with a reward at the end."""
    chance = random.Random(seed)
    number = 0
    spans: list[agl.Span] = []
    last = float(agents * (calls + 2) + 10)
    root = span(1_000_000, None, "x.session", 0.0, last, agentops__span__kind="session")
    for agent in range(agents):
        above = f"{900_000 + agent:016x}"
        first = number + 1
        history: list[tuple[str, str]] = [("system", words(chance, 120))]
        ids = [chance.randrange(TOKENS) for _ in range(180)]
        for _ in range(calls):
            number += 1
            spans.append(call(chance, number, above, history, ids))
        spans.append(
            span(
                900_000 + agent,
                root.span_id,
                "agent",
                first - 0.25,
                number + 0.75,
                agent__name=f"agent {agent}",
            )
        )
    reward = {"agentlightning__reward__0__name": "primary", "agentlightning__reward__0__value": 1.0}
    spans.append(span(2_000_000, root.span_id, "agentlightning.annotation", last - 1, last - 1, **reward))
    return [*spans, root]


def seconds(work: Callable[[], Any], enough: float) -> dict[str, Any]:
    """The time that `work` takes, of as many runs as fit into `enough` seconds, 3 at least."""
    work()
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - began < enough:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return {"best_s": min(times), "median_s": statistics.median(times), "runs": len(times)}


async def stored(store: Any, count: int) -> list[str]:
    """Fills a store with rollouts of 4 calls and returns their ids."""
    ids = []
    for number in range(count):
        started = await store.start_rollout(f"task {number}")
        where = {"rollout_id": started.rollout_id, "attempt_id": started.attempt.attempt_id}
        spans = [one.model_copy(update=where) for one in rollout(1, 4, seed=number)]
        for place, one in enumerate(spans, 1):
            one.sequence_id = place
            await store.add_span(one)
        await store.update_attempt(started.rollout_id, started.attempt.attempt_id, status="succeeded")
        ids.append(started.rollout_id)
    return ids


def digest(found: Any) -> str:
    """What tells whether both sides found the same."""
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


Calls = list[tuple[list[int], list[int]]]
"""The token ids of prompt and response, of each call of a rollout."""


async def adapted(store: Any, ids: list[str], runs: int) -> dict[str, Any]:
    """The way of 0.3: each rollout's spans are queried, and adapted in Python."""
    adapter = TracerTraceToTriplet()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        found = [adapter.adapt(await store.query_spans(rollout_id)) for rollout_id in ids]
        times.append(time.perf_counter() - start)
    calls: list[Calls] = [
        [(triplet.prompt["token_ids"], triplet.response["token_ids"]) for triplet in triplets]
        for triplets in found
    ]
    rewards = [[t.reward for t in triplets if t.reward is not None][-1] for triplets in found]
    return {"seconds": statistics.median(times), "rollouts": len(ids), "found": digest([calls, rewards])}


async def from_peer(count: int, runs: int) -> dict[str, Any]:
    """0.3's store in memory, and its adapter over each rollout's spans."""
    store = agl.InMemoryLightningStore()
    return {"stored": await adapted(store, await stored(store, count), runs)}


def from_ours(count: int, runs: int) -> dict[str, Any]:
    """Our store in a SQLite file: rows of tokens in NumPy arrays, and the way of 0.3."""
    from agentlightning.adapter import training_arrays

    times = []
    with tempfile.TemporaryDirectory() as folder:
        store = agl.SqliteLightningStore(Path(folder) / "agl.db")

        async def unchanged() -> dict[str, Any]:
            return await adapted(store, await stored(store, count), runs)

        as_before = asyncio.run(unchanged())
        for _ in range(runs):
            start = time.perf_counter()
            data = training_arrays(store, level="transition")
            times.append(time.perf_counter() - start)
        store.close()
    calls: dict[str, Calls] = {}
    rewards: dict[str, float] = {}
    for row, rollout_id in enumerate(data.rollout_ids):
        tokens = slice(data.offsets[row], data.offsets[row + 1])
        ids, is_sampled = data.token_ids[tokens], data.mask[tokens] == 1
        calls.setdefault(rollout_id, []).append((ids[~is_sampled].tolist(), ids[is_sampled].tolist()))
        rewards[rollout_id] = float(data.rewards[row])
    found = digest([list(calls.values()), list(rewards.values())])
    arrays = {"seconds": statistics.median(times), "rollouts": count, "found": found}
    return {"stored": arrays, "unchanged": as_before}


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("side", choices=("ours", "peer"))
    parser.add_argument("--rollouts", type=int, default=1000)
    parser.add_argument("--enough", type=float, default=5.0)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    adapter = TracerTraceToTriplet()
    figures: dict[str, Any] = {"version": agl.__version__, "python": sys.version.split()[0]}
    for name, spans, calls in (("small", rollout(1, 4), 4), ("large", rollout(10, 20), 200)):
        found = adapter.adapt(spans)
        assert len(found) == calls, f"{len(found)} triplets of {calls} calls"
        assert all(triplet.prompt["token_ids"] and triplet.response["token_ids"] for triplet in found)
        assert [triplet.reward for triplet in found if triplet.reward is not None] == [1.0]
        figures[name] = seconds(lambda spans=spans: adapter.adapt(spans), arguments.enough)
        figures[name]["found"] = digest([triplet.model_dump() for triplet in found])
    figures |= (
        from_ours(arguments.rollouts, arguments.runs)
        if arguments.side == "ours"
        else asyncio.run(from_peer(arguments.rollouts, arguments.runs))
    )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
