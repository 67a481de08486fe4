"""0.3's vLLM server for verl: a name only."""

from __future__ import annotations

from agentlightning.verl import Refused

__all__ = [
    "PatchedvLLMServer",
]


class PatchedvLLMServer(Refused):
    """Only a name."""
