"""0.3's way to have LiteLLM's calls recorded: their requests are, as everybody's."""

from __future__ import annotations

from agentlightning.instrumentation import instrument_for, uninstrument_for

__all__ = ["instrument_litellm", "uninstrument_litellm"]


def instrument_litellm() -> None:
    """Has calls of models recorded inside of traces, with token ids, until `uninstrument_litellm`."""
    instrument_for("litellm")


def uninstrument_litellm() -> None:
    """Undoes `instrument_litellm`."""
    uninstrument_for("litellm")
