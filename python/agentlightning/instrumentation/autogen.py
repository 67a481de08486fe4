"""Records what AutoGen's older API does, as `pyautogen` and AG2 before 1.0 have it: chats, agents, tools."""

from __future__ import annotations

import sys
from typing import Any

from agentlightning.instrumentation.patching import Patches
from agentlightning.instrumentation.structure import Described, wrap

_patches = Patches()


def instrument() -> None:
    """Patches the methods of conversable agents, which all agents are."""
    agents = sys.modules["autogen.agentchat.conversable_agent"]
    for prefix in ("", "a_"):
        wrap(_patches, agents.ConversableAgent, f"{prefix}initiate_chat", _chat, _summary)
        wrap(_patches, agents.ConversableAgent, f"{prefix}generate_reply", _agent)
        wrap(_patches, agents.ConversableAgent, f"{prefix}execute_function", _tool, _second)
    groups = sys.modules.get("autogen.agentchat.groupchat")
    if groups is not None:
        for prefix in ("", "a_"):
            wrap(_patches, groups.GroupChatManager, f"{prefix}run_chat", _team)


def uninstrument() -> None:
    """Leaves AutoGen as it was."""
    _patches.undo()


def _chat(self: Any, recipient: Any, *args: Any, message: Any = None, **kwargs: Any) -> Described:
    message = message if isinstance(message, (str, dict)) else None
    return Described("workflow", "autogen.chat", f"{self.name} → {recipient.name}", message or "")


def _agent(self: Any, messages: Any = None, sender: Any = None, *args: Any, **kwargs: Any) -> Described:
    if messages is None and sender is not None:
        messages = self._oai_messages[sender]
    return Described("agent", "autogen.agent", self.name, (messages or [None])[-1])


def _tool(self: Any, func_call: Any, *args: Any, **kwargs: Any) -> Described:
    return Described("tool", "autogen.tool", func_call.get("name"), func_call.get("arguments"))


def _team(self: Any, messages: Any = None, *args: Any, **kwargs: Any) -> Described:
    return Described("team", "autogen.group_chat", self.name, (messages or [None])[-1])


def _summary(result: Any) -> Any:
    return getattr(result, "summary", None) or getattr(result, "chat_history", result)


def _second(result: Any) -> Any:
    return result[1] if isinstance(result, tuple) and len(result) == 2 else result
