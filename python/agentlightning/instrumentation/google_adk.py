"""Records what Google's Agent Development Kit does. It has spans of its own for all of it; what its agents
and tools get and say is written on those."""

from __future__ import annotations

import sys
from typing import Any

from agentlightning.instrumentation.patching import Patches
from agentlightning.instrumentation.structure import enriched, patch_family

_patches = Patches()


def instrument() -> None:
    """Patches the base classes of agents and tools."""
    agents = sys.modules["google.adk.agents"]
    patch_family(_patches, agents.BaseAgent, ("_run_async_impl",), enriched(_asked, _said))
    from google.adk.tools.base_tool import BaseTool

    patch_family(_patches, BaseTool, ("run_async",), enriched(_arguments))


def uninstrument() -> None:
    """Leaves the kit as it was."""
    _patches.undo()


def _arguments(self: Any, *, args: Any = None, **kwargs: Any) -> Any:
    return args


def _asked(self: Any, context: Any, *args: Any, **kwargs: Any) -> Any:
    return _text(context.user_content)


def _said(event: Any) -> Any:
    return _text(event.content)


def _text(content: Any) -> Any:
    parts = getattr(content, "parts", None) or ()
    texts = [part.text for part in parts if getattr(part, "text", None)]
    return "\n".join(texts) if len(texts) == len(parts) else content
