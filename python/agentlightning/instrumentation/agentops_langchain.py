"""0.3's way to have AgentOps record LangChain: our own handler does, whichever tracer there is."""

from __future__ import annotations

from agentlightning.instrumentation import instrument_for, uninstrument_for

__all__ = ["instrument_agentops_langchain", "uninstrument_agentops_langchain"]


def instrument_agentops_langchain() -> None:
    """Has chains, agents, nodes and tools recorded inside of traces, until
    `uninstrument_agentops_langchain`."""
    instrument_for("agentops_langchain")


def uninstrument_agentops_langchain() -> None:
    """Undoes `instrument_agentops_langchain`."""
    uninstrument_for("agentops_langchain")
