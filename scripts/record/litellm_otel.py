"""LiteLLM's OpenTelemetry integration."""

# needs: litellm
# needs: opentelemetry-sdk
# needs: opentelemetry-exporter-otlp-proto-http
# needs: fastapi
# needs: orjson

import asyncio
import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm
from common import ASK, EXTRA, TOOLS, FakeVLLM, asked_for_tools, provider, save
from litellm.integrations.opentelemetry import OpenTelemetry, OpenTelemetryConfig
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

tracing, exporter = provider()


async def main() -> None:
    """Holds the conversation."""
    kept = InMemorySpanExporter()
    litellm.callbacks = [OpenTelemetry(config=OpenTelemetryConfig(exporter=kept))]
    with FakeVLLM() as engine:
        ask = {
            "model": "hosted_vllm/fake",
            "api_base": engine.base_url,
            "api_key": "none",
            "extra_body": EXTRA,
        }
        await litellm.acompletion(messages=ASK, temperature=0.5, max_tokens=16, **ask)
        await litellm.acompletion(messages=[{"role": "user", "content": "add one"}], tools=TOOLS, **ask)
        await litellm.acompletion(messages=asked_for_tools("call-1"), tools=TOOLS, **ask)
        await asyncio.sleep(2)
    spans = kept.get_finished_spans() or exporter.get_finished_spans()
    save("litellm", spans, "litellm", "openai")


asyncio.run(main())
