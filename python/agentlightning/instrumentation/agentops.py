"""AgentOps: initialized without its service, or joined where the user has initialized it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from agentlightning.tracer.otel import join_provider

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

logger = logging.getLogger(__name__)

_service_enabled = False


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


def instrument() -> None:
    """Has the spans recorded of an AgentOps that was initialized before us; one that comes later sets the
    global provider, which is joined then."""
    join()


def uninstrument() -> None:
    """Nothing to undo."""
