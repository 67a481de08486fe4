"""LiteLLM's proxy as agentlightning 0.3 runs it, for `make bench-gateway`.

    peer.py PORT UPSTREAM ATTEMPTS

The benchmark talks to it over standard input and output. Everything is 0.3's own: `LLMProxy` over an
in-memory store in one process, which spares it the way to a store of another process that its default takes.
Capture asks for what ours asks for: token ids, log-probs, spans.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import TextIO

import agentlightning as agl


def main() -> None:
    """Serves with a standard output of its own: others print too, to standard error then."""
    with open(os.dup(1), "w", encoding="utf-8") as told:
        os.dup2(2, 1)
        asyncio.run(serve(told))


async def serve(told: TextIO) -> None:
    """Tells the attempts that calls can be booked to, and serves until standard input ends.

    A line there asks how many calls were kept.
    """
    port, upstream, attempts = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    store = agl.InMemoryLightningStore()
    claims = []
    for _ in range(attempts):
        rollout = await store.start_rollout(input="task", mode="train")
        claims.append((rollout.rollout_id, rollout.attempt.attempt_id))
    model = {
        "model_name": "policy",
        "litellm_params": {"model": "hosted_vllm/policy", "api_base": upstream, "api_key": "none"},
    }
    proxy = agl.LLMProxy(
        port=port,
        host="127.0.0.1",
        model_list=[model],
        store=store,
        launch_mode="asyncio",
        callbacks=["return_token_ids", "logprobs", "opentelemetry"],
    )
    await proxy.start()
    print(json.dumps(claims), file=told, flush=True)
    loop = asyncio.get_running_loop()
    while await loop.run_in_executor(None, sys.stdin.readline):
        kept = 0
        for rollout_id, _ in claims:
            spans = await store.query_spans(rollout_id)
            kept += sum(span.name == "litellm_request" for span in spans)
        print(kept, file=told, flush=True)


if __name__ == "__main__":
    main()
