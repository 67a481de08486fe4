"""0.3's go-between of verl and the store: a name only."""

from __future__ import annotations

from agentlightning.verl import Refused

__all__ = [
    "AgentModeDaemon",
]


class AgentModeDaemon(Refused):
    """Only a name."""
