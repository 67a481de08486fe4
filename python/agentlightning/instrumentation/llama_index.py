"""Records what LlamaIndex does: agents and the steps of their workflows, tools, retrievers, engines, by its
instrumentation's dispatcher."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

from agentlightning.instrumentation.patching import Patches
from agentlightning.instrumentation.structure import Described, Kind, Steps, patch_family, recorded

logger = logging.getLogger(__name__)

_KINDS: dict[str, Kind] = {
    "BaseWorkflowAgent": "agent",
    "AgentWorkflow": "team",
    "Workflow": "workflow",
    "BaseRetriever": "retriever",
    "BaseLLM": "llm",
}
_NOT_INPUTS = ("self", "ctx", "kwargs", "cls")
_steps = Steps()
_patches = Patches()


def instrument() -> None:
    """Follows the dispatcher's spans, and patches tools, which have none."""
    instrumentation = sys.modules.get("llama_index_instrumentation.dispatcher")
    if instrumentation is not None:
        for name, tell in (("span_enter", _enter), ("span_exit", _exit), ("span_drop", _drop)):
            _patches.replace(instrumentation.Dispatcher, name, _preceded_by(tell))
    tools = sys.modules.get("llama_index.core.tools")
    if tools is not None:
        patch_family(_patches, tools.BaseTool, ("call", "acall"), recorded(_tool, _content))


def uninstrument() -> None:
    """Leaves the package as it was."""
    _patches.undo()


def _preceded_by(tell: Callable[..., None]) -> Callable[[Any], Any]:
    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def told(self: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                tell(*args, **kwargs)
            except Exception:
                logger.exception("A step of LlamaIndex could not be recorded.")
            return original(self, *args, **kwargs)

        return told

    return make


def _enter(id_: str, bound_args: Any, instance: Any = None, parent_id: Any = None, **kwargs: Any) -> None:
    name = id_.rpartition("-")[0].split("-")[0] or id_
    method = name.rpartition(".")[2]
    classes = {cls.__name__ for cls in type(instance).__mro__}
    kind: Kind = next((kind for base, kind in _KINDS.items() if base in classes), "chain")
    attributes: dict[str, Any] = {}
    arguments = bound_args.arguments
    event = arguments.get("ev")
    if event is not None:
        kind = "turn"
        # Of several agents, the one whose turn it is.
        attributes["agent.name"] = getattr(event, "current_agent_name", None)
    elif kind == "agent":
        name = str(getattr(instance, "name", None) or type(instance).__name__)
    inputs = None
    if kind != "llm":
        given = {key: value for key, value in arguments.items() if key not in _NOT_INPUTS}
        inputs = event or given.get("start_event") or given or arguments.get("kwargs")
    _steps.start(id_, parent_id, Described(kind, f"llama_index.{method}", name, inputs, attributes))


def _exit(id_: str, bound_args: Any, instance: Any = None, result: Any = None, **kwargs: Any) -> None:
    step = _steps.get(id_)
    # A call's own span says what came of it.
    _steps.end(id_, None if step is None or step.kind == "llm" else _content(result))


def _drop(id_: str, bound_args: Any, instance: Any = None, err: Any = None, **kwargs: Any) -> None:
    _steps.end(id_, error=err)


def _content(result: Any) -> Any:
    for name in ("response", "content"):
        if getattr(result, name, None) is not None:
            return str(getattr(result, name))
    return result if isinstance(result, (str, list, dict)) else str(result)


def _tool(self: Any, *args: Any, **kwargs: Any) -> Described:
    kwargs.pop("ctx", None)
    return Described("tool", "llama_index.tool", self.metadata.name, kwargs or list(args))
