"""Records what AutoGen's agentchat does. Its agents and tools have spans of their own, on which their inputs
and outputs are written; teams get spans here."""

from __future__ import annotations

import sys
from typing import Any

from agentlightning.instrumentation.patching import Patches
from agentlightning.instrumentation.structure import Described, enriched, patch_family, wrap

_patches = Patches()


def instrument() -> None:
    """Patches the base classes of agents, tools and teams, where they are loaded."""
    agents = sys.modules.get("autogen_agentchat.agents")
    if agents is not None:
        family = enriched(_messages, _response)
        patch_family(_patches, agents.BaseChatAgent, ("on_messages", "on_messages_stream"), family)
        from autogen_core.tools import BaseTool

        patch_family(_patches, BaseTool, ("run",), enriched(_arguments))
    teams = sys.modules.get("autogen_agentchat.teams")
    if teams is not None:
        wrap(_patches, teams.BaseGroupChat, "run_stream", _team, _last)


def uninstrument() -> None:
    """Leaves AutoGen as it was."""
    _patches.undo()


def _messages(self: Any, messages: Any, *args: Any, **kwargs: Any) -> Any:
    return list(messages)


def _response(response: Any) -> Any:
    return getattr(response, "chat_message", response)


def _arguments(self: Any, args: Any, *rest: Any, **kwargs: Any) -> Any:
    return args


def _team(self: Any, *, task: Any = None, **kwargs: Any) -> Described:
    name = getattr(self, "name", None) or type(self).__name__
    return Described("team", f"autogen.{type(self).__name__}", name, task)


def _last(result: Any) -> Any:
    messages = getattr(result, "messages", None)
    return messages[-1] if messages else result
