"""AgentOps, through the tracer of agentlightning 0.3, which adds the engine's token ids."""

# needs: agentlightning==0.3.0
# needs: agentops

import asyncio
import json

from common import FakeVLLM, converse, save
from openai import OpenAI

import agentlightning


async def main() -> None:
    """Records the conversation."""
    tracer = agentlightning.AgentOpsTracer()
    with FakeVLLM() as engine, tracer.lifespan():
        async with tracer.trace_context("run"):
            converse(OpenAI(base_url=engine.base_url, api_key="none"))
        spans = tracer.get_last_trace()
    save(
        "agentops",
        [json.loads(span.model_dump_json()) for span in spans],
        "agentlightning",
        "agentops",
        "openai",
    )


asyncio.run(main())
