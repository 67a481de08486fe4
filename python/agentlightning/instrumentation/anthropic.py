"""Takes the tries that Anthropic's SDK makes at one call for one; the calls themselves are seen in its HTTP
client."""

from __future__ import annotations

import sys

from agentlightning.instrumentation import stainless
from agentlightning.instrumentation.patching import Patches

_patches = Patches()


def instrument() -> None:
    """Patches the SDK's two kinds of clients."""
    anthropic = sys.modules["anthropic"]
    _patches.replace(anthropic.Anthropic, "request", stainless.request)
    _patches.replace(anthropic.AsyncAnthropic, "request", stainless.request_async)


def uninstrument() -> None:
    """Leaves the SDK as it was."""
    _patches.undo()
