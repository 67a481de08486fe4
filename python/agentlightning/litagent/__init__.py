"""Agents: classes with a rollout method, and functions decorated into agents."""

from agentlightning.litagent.decorator import FunctionalLitAgent, llm_rollout, prompt_rollout, rollout
from agentlightning.litagent.litagent import LitAgent, is_v0_1_rollout_api

__all__ = [
    "FunctionalLitAgent",
    "LitAgent",
    "is_v0_1_rollout_api",
    "llm_rollout",
    "prompt_rollout",
    "rollout",
]
