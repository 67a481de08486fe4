"""Fills a store with two rollouts of one task, one better than the other, and exports every kind and form."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import agentlightning as agl
from agentlightning import _core

KINDS = ("triplets", "transitions", "trajectories", "messages", "pairs", "atif")
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}},
    },
}
ASK = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "what is 1 + 1?"}]


def call(
    number: int, messages: list[Any], answer: dict[str, Any], ids: list[int], out: list[int]
) -> agl.Span:
    """A call of a model as a tracer of ours records it."""
    request = {"model": "m", "messages": messages, "tools": [TOOL]}
    response = {
        "id": f"chatcmpl-{number}",
        "model": "m",
        "prompt_token_ids": ids,
        "choices": [
            {
                "message": {"role": "assistant", **answer},
                "finish_reason": "stop",
                "token_ids": out,
                "logprobs": {"content": [{"token": "t", "logprob": -0.5} for _ in out]},
            }
        ],
        "usage": {
            "prompt_tokens": len(ids),
            "completion_tokens": len(out),
            "total_tokens": len(ids) + len(out),
        },
    }
    attributes = json.loads(
        _core.chat_attributes(json.dumps(request).encode(), json.dumps(response).encode())
    )
    return agl.Span.from_attributes(
        attributes=attributes,
        name="openai.chat.completion",
        sequence_id=number,
        start_time=float(number),
        end_time=number + 0.5,
    )


def rollout(said: str, reward: float) -> list[agl.Span]:
    """A call of a tool, the answer after it, and what that earned."""
    calls = [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"x": 1}'}}]
    called = {"role": "assistant", "content": None, "tool_calls": calls}
    told = [*ASK, called, {"role": "tool", "tool_call_id": "c1", "content": "2"}]
    judged = {"agentlightning.reward.0.name": "primary", "agentlightning.reward.0.value": reward}
    first, second = [1, 2, 3], [1, 2, 3, 4, 5, 6]
    asked = call(1, ASK, {"content": None, "tool_calls": calls}, first, [4, 5])
    tool = agl.Span.from_attributes(
        attributes={"tool.name": "add", "tool.call.id": "c1", "tool.parameters": '{"x": 1}'},
        name="tool_call.add",
        parent_id=asked.span_id,
        sequence_id=1,
        start_time=1.5,
        end_time=1.5,
    )
    return [
        asked,
        tool,
        call(2, told, {"content": said}, second, [7, 8, 9] if reward else [10]),
        agl.Span.from_attributes(
            attributes=judged, name="agentlightning.annotation", sequence_id=3, start_time=3.0, end_time=3.0
        ),
    ]


async def fill(path: Path) -> None:
    """Makes the store."""
    store = agl.SqliteLightningStore(path)
    for said, reward in (("two", 1.0), ("three", 0.0)):
        started = await store.start_rollout("what is 1 + 1?", mode="train")
        where = {"rollout_id": started.rollout_id, "attempt_id": started.attempt.attempt_id}
        spans = [span.model_copy(update=where) for span in rollout(said, reward)]
        await store.add_many_spans(spans)
        await store.update_attempt(started.rollout_id, started.attempt.attempt_id, status="succeeded")
    store.close()


def main() -> None:
    """Writes KIND.FORMAT for every kind and format, and the folder KIND.npy where there are numbers."""
    out = Path(sys.argv[1])
    asyncio.run(fill(out / "agl.db"))
    agl_command = str(Path(sys.executable).with_name("agl"))
    for kind in KINDS:
        forms = ["jsonl", "parquet", "arrow", *(["npy"] if kind in ("transitions", "trajectories") else [])]
        for form in forms:
            command = [agl_command, "export", kind, "--store", str(out / "agl.db"), "--format", form]
            done = subprocess.run(
                [*command, "--out", str(out / f"{kind}.{form}")], capture_output=True, text=True
            )
            if done.returncode != 0:
                sys.exit(f"{' '.join(command)}: {done.stderr}")


if __name__ == "__main__":
    main()
