"""0.3's trainer on top of verl's: a name only."""

from __future__ import annotations

from agentlightning.verl import Refused

__all__ = [
    "AgentLightningTrainer",
]


class AgentLightningTrainer(Refused):
    """Only a name."""
