"""Runners: what takes tasks from the store and runs an agent on them."""

from agentlightning.runner.agent import LitAgentRunner
from agentlightning.runner.base import Runner

__all__ = ["LitAgentRunner", "Runner"]
