"""Runners: what takes tasks from the store and runs an agent on them."""

from agentlightning.runner.agent import LitAgentRunner
from agentlightning.runner.base import Runner
from agentlightning.runner.legacy import LegacyAgentRunner, LegacyRunner

__all__ = ["LegacyAgentRunner", "LegacyRunner", "LitAgentRunner", "Runner"]
