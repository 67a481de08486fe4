"""Records what CrewAI does: crews, tasks, agents, tools, flows and their methods.

CrewAI's events are told to listeners in threads of their own, from where nothing can be put around what
follows.
"""

from __future__ import annotations

import sys
from typing import Any

from agentlightning.instrumentation.patching import Patches
from agentlightning.instrumentation.structure import Described, patch_family, recorded, wrap

_patches = Patches()


def instrument() -> None:
    """Patches the methods that run each of these."""
    crewai = sys.modules["crewai"]
    for name in ("kickoff", "akickoff"):
        wrap(_patches, crewai.Crew, name, _crew, _raw)
    for name in ("_execute_core", "_aexecute_core"):
        wrap(_patches, crewai.Task, name, _task, _raw)
    for name in ("execute_task", "aexecute_task", "kickoff", "kickoff_async"):
        wrap(_patches, crewai.Agent, name, _agent, _raw)
    wrap(_patches, crewai.Flow, "kickoff_async", _flow)
    wrap(_patches, crewai.Flow, "_execute_method", _method)
    from crewai.tools.base_tool import BaseTool
    from crewai.tools.structured_tool import CrewStructuredTool

    patch_family(_patches, BaseTool, ("run", "arun"), recorded(_tool))
    for name in ("invoke", "ainvoke"):
        wrap(_patches, CrewStructuredTool, name, _structured_tool)


def uninstrument() -> None:
    """Leaves CrewAI as it was."""
    _patches.undo()


def _crew(self: Any, inputs: Any = None, *args: Any, **kwargs: Any) -> Described:
    return Described("crew", "crewai.crew", self.name or "crew", inputs or {})


def _task(self: Any, agent: Any = None, context: Any = None, *args: Any, **kwargs: Any) -> Described:
    inputs = {"description": self.description, "expected_output": self.expected_output, "context": context}
    return Described("task", "crewai.task", self.name or "task", inputs)


def _agent(self: Any, task: Any = None, context: Any = None, *args: Any, **kwargs: Any) -> Described:
    task = task if task is not None else kwargs.get("messages")
    inputs = {"task": getattr(task, "description", task), "context": context}
    attributes = {"agent.role": self.role, "agent.goal": self.goal}
    return Described("agent", "crewai.agent", self.role, inputs, attributes)


def _tool(self: Any, *args: Any, **kwargs: Any) -> Described:
    return Described("tool", "crewai.tool", self.name, kwargs or list(args))


def _structured_tool(self: Any, input: Any = None, *args: Any, **kwargs: Any) -> Described:
    return Described("tool", "crewai.tool", self.name, input)


def _flow(self: Any, inputs: Any = None, *args: Any, **kwargs: Any) -> Described | None:
    if _is_crewai_s(self):
        return None
    return Described("workflow", "crewai.flow", type(self).__name__, inputs or {})


def _method(self: Any, method_name: Any, *args: Any, **kwargs: Any) -> Described | None:
    return None if _is_crewai_s(self) else Described("turn", "crewai.flow.method", str(method_name))


def _is_crewai_s(flow: Any) -> bool:
    """CrewAI's own agents are flows inside, whose steps say nothing to anybody else."""
    return type(flow).__module__.startswith("crewai.")


def _raw(result: Any) -> Any:
    return getattr(result, "raw", result)
