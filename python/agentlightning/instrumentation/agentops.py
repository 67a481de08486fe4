"""AgentOps: initialized without its service, or joined where the user has initialized it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, ClassVar

from agentlightning import instrumentation
from agentlightning.former import FormerPart
from agentlightning.tracer.otel import join_provider

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

    from agentlightning.instrumentation import bypassable

    BypassableOTLPMetricExporter = bypassable.BypassableOTLPMetricExporter
    BypassableOTLPSpanExporter = bypassable.BypassableOTLPSpanExporter
else:

    def __getattr__(name: str) -> Any:
        # They need a package that not everybody has.
        if name in ("BypassableOTLPMetricExporter", "BypassableOTLPSpanExporter"):
            from agentlightning.instrumentation import bypassable

            return getattr(bypassable, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "BypassableAuthenticatedOTLPExporter",
    "BypassableOTLPMetricExporter",
    "BypassableOTLPSpanExporter",
    "BypassableV3Client",
    "BypassableV4Client",
    "enable_agentops_service",
    "instrument_agentops",
    "uninstrument_agentops",
]

logger = logging.getLogger(__name__)

_service_enabled = False


def instrument_agentops() -> bool:
    """Has calls of models recorded inside of traces, with token ids, until `uninstrument_agentops`; False,
    and nothing done, where AgentOps is not installed.

    An AgentOps that you initialize yourself goes on talking to its service; one that `AgentOpsTracer` does,
    does not.
    """
    if not instrumentation.AGENTOPS_INSTALLED:
        logger.warning("agentops is not installed.")
        return False
    instrumentation.instrument_for("agentops")
    return True


def uninstrument_agentops() -> None:
    """Undoes `instrument_agentops`."""
    instrumentation.uninstrument_for("agentops")


def is_service_enabled() -> bool:
    """What `enable_agentops_service` has said last."""
    return _service_enabled


def enable_agentops_service(enabled: bool = True) -> None:
    """Says whether AgentOps, where a tracer of ours initializes it, may talk to its own service; by default
    it may not."""
    global _service_enabled
    _service_enabled = enabled


def initialize(provider: TracerProvider) -> None:
    """Initializes AgentOps, unless it has been, with our provider in place of its own and nothing sent
    anywhere."""
    import agentops
    from agentops.sdk import core

    client = agentops.get_client()
    if client.initialized:
        join()
        return
    options: dict[str, Any] = {
        "auto_start_session": False,
        # Our own instrumentation sees the same calls.
        "instrument_llm_calls": False,
        "log_session_replay_url": _service_enabled,
    }
    if _service_enabled:
        agentops.init(**options)
        join()
        return
    setup, own_auth = core.setup_telemetry, client._start_auth_task
    core.setup_telemetry = lambda *args, **kwargs: (provider, _meter_provider())
    client._start_auth_task = lambda api_key: None
    try:
        agentops.init(**options)
    finally:
        core.setup_telemetry, client._start_auth_task = setup, own_auth
    # Its tracers are otherwise those of the global provider, whoever's that is.
    core.tracer.get_tracer = lambda name="agentops": provider.get_tracer(name)


def join() -> None:
    """Has the spans of AgentOps' own provider recorded, where it has one."""
    from agentops.sdk import core

    if core.tracer.provider is not None:
        join_provider(core.tracer.provider)


def _meter_provider() -> Any:
    """One that measures nothing."""
    from opentelemetry.sdk.metrics import MeterProvider

    return MeterProvider(shutdown_on_exit=False)


_INSTEAD = (
    "AgentOpsTracer initializes AgentOps without exporters and clients of its service, unless "
    "enable_agentops_service() has been called"
)


class BypassableAuthenticatedOTLPExporter(FormerPart):
    """What stood in for AgentOps' exporter, which `AgentOpsTracer` leaves out instead."""

    instead: ClassVar[str] = _INSTEAD


class BypassableV3Client(FormerPart):
    """What stood in for AgentOps' client that logs in, which `AgentOpsTracer` leaves out instead."""

    instead: ClassVar[str] = _INSTEAD


class BypassableV4Client(FormerPart):
    """What stood in for AgentOps' client that uploads, which `AgentOpsTracer` leaves out instead."""

    instead: ClassVar[str] = _INSTEAD
