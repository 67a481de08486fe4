"""Records what the OpenAI Agents SDK does: runs, agents, turns, tools, handoffs and guardrails, by its
tracing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from agentlightning.instrumentation.patching import Patches
from agentlightning.instrumentation.structure import Described, Kind, Steps, text_of

logger = logging.getLogger(__name__)

_KINDS: dict[str, Kind] = {
    "agent": "agent",
    "function": "tool",
    "generation": "llm",
    "response": "llm",
    "turn": "turn",
    "task": "task",
    "mcp_tools": "tool",
}


class _Recorder:
    """Records the SDK's spans as spans of the trace that is open where they happen; elsewhere it does
    nothing."""

    def __init__(self) -> None:
        self._steps = Steps()

    def on_trace_start(self, trace: Any) -> None:
        """Begins a run."""
        self._steps.start(_key(trace), None, Described("workflow", "agents.workflow", trace.name))

    def on_trace_end(self, trace: Any) -> None:
        """Ends a run."""
        self._steps.end(_key(trace))

    def on_span_start(self, span: Any) -> None:
        """Begins whatever the span is of."""
        data = span.span_data
        kind = _KINDS.get(data.type, "chain")
        name = getattr(data, "name", None) or getattr(data, "agent_name", None)
        if data.type == "handoff":
            name = f"{data.from_agent} → {data.to_agent}"
        attributes = {"agents.span.type": data.type}
        if data.type == "agent":
            attributes["agents.tools"] = text_of(data.tools or [])
            attributes["agents.handoffs"] = text_of(data.handoffs or [])
        described = Described(kind, f"agents.{data.type}", name, None, attributes)
        self._steps.start(_key(span), span.parent_id or span.trace_id, described)

    def on_span_end(self, span: Any) -> None:
        """Ends it, with the inputs and outputs that are only known now."""
        data = span.span_data
        step = self._steps.get(_key(span))
        if step is None:
            return
        inputs, outputs = getattr(data, "input", None), getattr(data, "output", None)
        if data.type == "handoff":
            outputs = data.to_agent
        if data.type == "guardrail":
            outputs = {"triggered": data.triggered}
        if data.type in ("generation", "response"):
            # The call's own span has both.
            inputs = outputs = None
        attributes: dict[str, Any] = {}
        if inputs is not None:
            attributes["input.value"] = text_of(inputs)
            if step.kind == "tool":
                attributes["gen_ai.tool.call.arguments"] = text_of(inputs)
        error = None if span.error is None else RuntimeError(text_of(span.error))
        self._steps.end(_key(span), outputs, error=error, attributes=attributes)


def _key(item: Any) -> Any:
    """A span's or a trace's id; of those of a run that is not traced, which all have the same, the
    object's."""
    own = getattr(item, "span_id", None) or item.trace_id
    return id(item) if own == "no-op" else own


_recorder = _Recorder()
_patches = Patches()


def instrument() -> None:
    """Follows the SDK's spans and traces, those of agents with their tracing switched off, too.

    A processor of ours would see less: there may be none while tracing is off, and the user may set others.
    """
    from agents.tracing import spans, traces

    for span in (spans.SpanImpl, spans.NoOpSpan):
        _patches.replace(span, "start", _followed_by(_recorder.on_span_start))
        _patches.replace(span, "finish", _followed_by(_recorder.on_span_end))
    for trace in (traces.TraceImpl, traces.NoOpTrace):
        _patches.replace(trace, "start", _followed_by(_recorder.on_trace_start))
        _patches.replace(trace, "finish", _followed_by(_recorder.on_trace_end))


def _followed_by(tell: Callable[[Any], None]) -> Callable[[Any], Any]:
    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def told(self: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(self, *args, **kwargs)
            try:
                tell(self)
            except Exception:
                logger.exception("A step of an agent could not be recorded.")
            return result

        return told

    return make


def uninstrument() -> None:
    """Leaves the SDK as it was."""
    _patches.undo()
