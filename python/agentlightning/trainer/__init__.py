"""The trainer: puts agent, algorithm, runners and store together."""

from agentlightning.trainer.init_utils import (
    build_component,
    instantiate_component,
    instantiate_from_spec,
    load_class,
)
from agentlightning.trainer.legacy import TrainerLegacy
from agentlightning.trainer.registry import ExecutionStrategyRegistry
from agentlightning.trainer.trainer import Trainer

__all__ = [
    "ExecutionStrategyRegistry",
    "Trainer",
    "TrainerLegacy",
    "build_component",
    "instantiate_component",
    "instantiate_from_spec",
    "load_class",
]
