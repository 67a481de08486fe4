"""Tracers: what turns an agent's run into spans. Loaded lazily, so that emitters don't pay for
OpenTelemetry."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentlightning.tracer.agentops import AgentOpsTracer
    from agentlightning.tracer.base import (
        Tracer,
        clear_active_tracer,
        get_active_tracer,
        set_active_tracer,
        with_active_tracer_context,
    )
    from agentlightning.tracer.dummy import DummyTracer
    from agentlightning.tracer.otel import OtelTracer
    from agentlightning.tracer.weave import WeaveTracer

__all__ = [
    "AgentOpsTracer",
    "DummyTracer",
    "OtelTracer",
    "Tracer",
    "WeaveTracer",
    "clear_active_tracer",
    "get_active_tracer",
    "set_active_tracer",
    "with_active_tracer_context",
]

_HOME = {"AgentOpsTracer": "agentops", "DummyTracer": "dummy", "OtelTracer": "otel", "WeaveTracer": "weave"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME.get(name, 'base')}"), name)
