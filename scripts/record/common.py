"""What all recordings have in common: the conversation, and how spans are written down."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "python" / "tests"))

from fake_vllm import FakeVLLM

__all__ = ["ASK", "EXTRA", "TOOLS", "FakeVLLM", "asked_for_tools", "converse", "provider", "save"]

ASK = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "hello there friend"},
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds.",
            "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}},
        },
    }
]
EXTRA = {"return_token_ids": True}


def asked_for_tools(call_id: str) -> list[dict[str, Any]]:
    """The conversation once the tool has answered."""
    call = {"id": call_id, "type": "function", "function": {"name": "add", "arguments": '{"x": 1}'}}
    return [
        {"role": "user", "content": "add one"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call_id, "content": "two it is"},
    ]


def converse(client: Any, model: str = "fake") -> None:
    """Holds the conversation through OpenAI's client."""
    create = client.chat.completions.create
    create(model=model, messages=ASK, temperature=0.5, max_tokens=16, logprobs=True, extra_body=EXTRA)
    create(model=model, messages=[{"role": "user", "content": "add one"}], tools=TOOLS, extra_body=EXTRA)
    create(model=model, messages=asked_for_tools("call-1"), tools=TOOLS, extra_body=EXTRA)
    stream = create(model=model, messages=ASK, stream=True, extra_body=EXTRA)
    for _ in stream:
        pass


def provider() -> tuple[Any, Any]:
    """OpenTelemetry's provider, set globally, and the exporter that keeps its spans."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    tracing = TracerProvider()
    tracing.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(tracing)
    return tracing, exporter


def _span(span: Any, number: int) -> dict[str, Any]:
    def seconds(nanos: int | None) -> float | None:
        return None if nanos is None else nanos / 1e9

    def plain(attributes: Any) -> dict[str, Any]:
        pairs = (attributes or {}).items()
        return {key: list(value) if isinstance(value, tuple) else value for key, value in pairs}

    return {
        "rollout_id": "ro",
        "attempt_id": "at",
        "sequence_id": number,
        "trace_id": f"{span.context.trace_id:032x}",
        "span_id": f"{span.context.span_id:016x}",
        "parent_id": None if span.parent is None else f"{span.parent.span_id:016x}",
        "name": span.name,
        "status": {"status_code": span.status.status_code.name, "description": span.status.description},
        "attributes": plain(span.attributes),
        "events": [
            {"name": event.name, "attributes": plain(event.attributes), "timestamp": seconds(event.timestamp)}
            for event in span.events
        ],
        "links": [],
        "start_time": seconds(span.start_time),
        "end_time": seconds(span.end_time),
        "context": None,
        "parent": None,
        "resource": {"attributes": {}, "schema_url": ""},
    }


def save(name: str, spans: list[Any], *packages: str) -> None:
    """Writes spans down, in the order in which they ended, with the versions of what made them."""
    path = ROOT / "crates" / "agl-trace" / "tests" / "fixtures" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    spans = [span if isinstance(span, dict) else _span(span, at) for at, span in enumerate(spans, 1)]
    for span in spans:
        # Where it was recorded says nothing.
        span["resource"] = {"attributes": {}, "schema_url": ""}
    recorded = {
        "recorded_with": {package: version(package) for package in packages},
        "spans": spans,
    }
    path.write_text(json.dumps(recorded, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{path.relative_to(ROOT)}: {len(recorded['spans'])} spans")
