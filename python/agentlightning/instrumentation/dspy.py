"""Records what DSPy does: modules, tools and retrievers."""

from __future__ import annotations

import sys
from typing import Any

from agentlightning.instrumentation.patching import Patches
from agentlightning.instrumentation.structure import Described, wrap

_patches = Patches()


def instrument() -> None:
    """Patches modules and tools. DSPy's callbacks are none for us: they may be set by one thread only, the
    user's."""
    dspy = sys.modules["dspy"]
    for name in ("__call__", "acall"):
        wrap(_patches, dspy.Module, name, _module, _prediction)
        wrap(_patches, dspy.Tool, name, _tool)


def uninstrument() -> None:
    """Leaves the package as it was."""
    _patches.undo()


def _module(self: Any, *args: Any, **kwargs: Any) -> Described:
    # What a program is made of has names like `predict`; the class says what it does.
    inputs = kwargs or list(args)
    attributes = {"dspy.signature": str(getattr(self, "signature", "")) or None}
    return Described("chain", "dspy.module", type(self).__name__, inputs, {**attributes, **_named(self)})


def _named(module: Any) -> dict[str, Any]:
    """A program, not one of DSPy's own modules, is the agent whose calls are inside."""
    own = type(module).__module__.split(".")[0] != "dspy" or type(module).__name__ == "ReAct"
    return {"agent.name": type(module).__name__} if own else {}


def _prediction(value: Any) -> Any:
    return value.toDict() if hasattr(value, "toDict") else value


def _tool(self: Any, *args: Any, **kwargs: Any) -> Described:
    return Described("tool", "dspy.tool", self.name or type(self).__name__, kwargs or list(args))
