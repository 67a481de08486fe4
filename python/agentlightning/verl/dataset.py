"""0.3's data sets for verl: names only."""

from __future__ import annotations

from agentlightning.verl import Refused

__all__ = [
    "AgentDataset",
    "LoadedDataset",
]


class AgentDataset(Refused):
    """Only a name."""


class LoadedDataset(Refused):
    """Only a name."""
