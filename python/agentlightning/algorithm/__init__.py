"""Algorithms: what learns from rollouts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agentlightning.algorithm.base import Algorithm
from agentlightning.algorithm.decorator import FunctionalAlgorithm, algo
from agentlightning.algorithm.fast import Baseline, FastAlgorithm, RunProgress, RunSummary

if TYPE_CHECKING:
    from agentlightning.algorithm.apo import APO as APO
    from agentlightning.algorithm.verl import VERL as VERL
else:

    def APO(*args: Any, **kwargs: Any) -> Any:
        """Makes an `agentlightning.algorithm.apo.APO`, which is only imported now."""
        from agentlightning.algorithm.apo import APO

        return APO(*args, **kwargs)

    def VERL(*args: Any, **kwargs: Any) -> Any:
        """Makes an `agentlightning.algorithm.verl.VERL`, which is only imported now."""
        from agentlightning.algorithm.verl import VERL

        return VERL(*args, **kwargs)


__all__ = [
    "APO",
    "VERL",
    "Algorithm",
    "Baseline",
    "FastAlgorithm",
    "FunctionalAlgorithm",
    "RunProgress",
    "RunSummary",
    "algo",
]
