"""Weave, through the tracer of agentlightning 0.3, which keeps its calls as operations."""

# needs: agentlightning==0.3.0
# needs: weave==0.52.22
# needs: openai<2

import asyncio
import json

from common import FakeVLLM, converse, save
from openai import OpenAI

from agentlightning.tracer.weave import WeaveTracer


async def main() -> None:
    """Records the conversation."""
    tracer = WeaveTracer()
    with FakeVLLM() as engine, tracer.lifespan():
        async with tracer.trace_context("run"):
            converse(OpenAI(base_url=engine.base_url, api_key="none"))
        spans = [json.loads(span.model_dump_json()) for span in tracer.get_last_trace()]
    for span in spans:
        # Weave also writes down what it runs on.
        for key in [key for key in span["attributes"] if key.startswith(("weave.os_", "weave.sys_"))]:
            del span["attributes"][key]
    save(
        "weave",
        spans,
        "agentlightning",
        "weave",
        "openai",
    )


asyncio.run(main())
