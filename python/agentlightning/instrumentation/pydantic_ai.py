"""Records what Pydantic AI does, by the instrumentation that it has itself: agents, model requests, tools."""

from __future__ import annotations

import sys

from agentlightning.tracer.otel import shared_provider

_ours: object = None


def instrument() -> None:
    """Switches its instrumentation on for agents that have none of their own, unless the user has."""
    global _ours
    agent = sys.modules["pydantic_ai.agent"].Agent
    if agent._instrument_default:
        return
    from pydantic_ai.models.instrumented import InstrumentationSettings

    _ours = InstrumentationSettings(tracer_provider=shared_provider())
    agent.instrument_all(_ours)


def uninstrument() -> None:
    """Switches it off again, unless the user has switched theirs on since."""
    agent = sys.modules["pydantic_ai.agent"].Agent
    if agent._instrument_default is _ours:
        agent.instrument_all(False)
