"""Weave, through the tracer of agentlightning 0.3, which hands its calls on as spans."""

# needs: agentlightning==0.3.0
# needs: weave

import asyncio
import json

from agentlightning.tracer.weave import WeaveTracer
from common import FakeVLLM, converse, save
from openai import OpenAI

import agentlightning


async def main() -> None:
    """Records the conversation."""
    store = agentlightning.InMemoryLightningStore()
    rollout = await store.start_rollout("task")
    tracer = WeaveTracer()
    with FakeVLLM() as engine, tracer.lifespan(store):
        where = {"rollout_id": rollout.rollout_id, "attempt_id": rollout.attempt.attempt_id}
        async with tracer.trace_context("run", store=store, **where):
            converse(OpenAI(base_url=engine.base_url, api_key="none"))
        spans = await store.query_spans(rollout.rollout_id)
    save("weave", [json.loads(span.model_dump_json()) for span in spans], "agentlightning", "weave", "openai")


asyncio.run(main())
