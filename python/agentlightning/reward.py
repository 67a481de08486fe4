"""0.3's former home of the reward functions, which live in `agentlightning.emitter`.

The module can be called as the decorator `reward` can: `agl.reward` is the name of both.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

from agentlightning.emitter.reward import (
    emit_reward,
    find_final_reward,
    find_reward_spans,
    get_reward_value,
    get_rewards_from_span,
    get_step_rewards,
    is_reward_span,
    reward,
)

__all__ = [
    "emit_reward",
    "find_final_reward",
    "find_reward_spans",
    "get_reward_value",
    "get_rewards_from_span",
    "get_step_rewards",
    "is_reward_span",
    "reward",
]

F = TypeVar("F", bound=Callable[..., Any])


class _Reward(ModuleType):
    def __call__(self, fn: F) -> F:
        """See `agentlightning.emitter.reward`."""
        return reward(fn)


sys.modules[__name__].__class__ = _Reward
