"""Records what smolagents does: agents, their steps and their tools."""

from __future__ import annotations

import sys
from typing import Any

from agentlightning.instrumentation.patching import Patches
from agentlightning.instrumentation.structure import Described, patch_family, recorded, wrap

_patches = Patches()


def instrument() -> None:
    """Patches the base classes of agents and tools."""
    smolagents = sys.modules["smolagents"]
    wrap(_patches, smolagents.MultiStepAgent, "run", _agent)
    patch_family(_patches, smolagents.MultiStepAgent, ("_step_stream",), recorded(_turn))
    patch_family(_patches, smolagents.Tool, ("__call__",), recorded(_tool))


def uninstrument() -> None:
    """Leaves the package as it was."""
    _patches.undo()


def _agent(self: Any, task: Any = None, *args: Any, **kwargs: Any) -> Described:
    name = self.name or type(self).__name__
    return Described("agent", "smolagents.agent", name, task)


def _turn(self: Any, memory_step: Any, *args: Any, **kwargs: Any) -> Described:
    return Described("turn", "smolagents.step", f"step {memory_step.step_number}")


def _tool(self: Any, *args: Any, sanitize_inputs_outputs: bool = False, **kwargs: Any) -> Described:
    inputs = kwargs or (args[0] if len(args) == 1 else list(args))
    return Described("tool", "smolagents.tool", self.name, inputs)
