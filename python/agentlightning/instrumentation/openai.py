"""Takes the tries that the OpenAI SDK makes at one call for one; the calls themselves are seen in its HTTP
client."""

from __future__ import annotations

import sys

from agentlightning.instrumentation import stainless
from agentlightning.instrumentation.patching import Patches

_patches = Patches()


def instrument() -> None:
    """Patches the SDK's two kinds of clients."""
    openai = sys.modules["openai"]
    _patches.replace(openai.OpenAI, "request", stainless.request)
    _patches.replace(openai.AsyncOpenAI, "request", stainless.request_async)


def uninstrument() -> None:
    """Leaves the SDK as it was."""
    _patches.undo()
