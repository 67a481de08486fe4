"""0.3's way into verl: names only."""

from __future__ import annotations

from typing import Any, NoReturn

from agentlightning.verl import Refused, VERLNotSupportedError

__all__ = ["TaskRunner", "main", "run_ppo"]


class TaskRunner(Refused):
    """Only a name."""


def run_ppo(*args: Any, **kwargs: Any) -> NoReturn:
    """Refuses, by a `VERLNotSupportedError`."""
    raise VERLNotSupportedError("agentlightning.verl.entrypoint.run_ppo")


def main(*args: Any, **kwargs: Any) -> NoReturn:
    """Refuses, by a `VERLNotSupportedError`."""
    raise VERLNotSupportedError("python -m agentlightning.verl")
