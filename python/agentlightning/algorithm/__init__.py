"""Algorithms: what learns from rollouts."""

from agentlightning.algorithm.base import Algorithm
from agentlightning.algorithm.decorator import FunctionalAlgorithm, algo
from agentlightning.algorithm.fast import Baseline, FastAlgorithm, RunProgress, RunSummary

__all__ = [
    "Algorithm",
    "Baseline",
    "FastAlgorithm",
    "FunctionalAlgorithm",
    "RunProgress",
    "RunSummary",
    "algo",
]
