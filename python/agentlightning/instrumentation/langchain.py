"""Records what LangChain and LangGraph do: chains, agents, nodes of graphs, tools and retrievers, by the
callback handler that every run has configured."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import Any

from langchain_core.callbacks.base import BaseCallbackHandler
from langchain_core.tracers import context

from agentlightning.instrumentation.structure import Described, Steps, text_of

logger = logging.getLogger(__name__)


class LightningCallbackHandler(BaseCallbackHandler):
    """Records runs as spans of the trace that is open where they happen; elsewhere it does nothing.

    One serves all: it is added to every run while tracers are set up, and may also be passed as a callback.
    """

    # In the run's own thread and task, so that what happens in the run is recorded below it.
    run_inline = True
    raise_error = False

    def __init__(self) -> None:
        self._steps = Steps()

    def __deepcopy__(self, memo: Any) -> LightningCallbackHandler:
        return self

    def __copy__(self) -> LightningCallbackHandler:
        return self

    # Chains, which agents and nodes of graphs are, too

    def on_chain_start(
        self, serialized: Any, inputs: Any, *, run_id: Any, parent_run_id: Any = None, **kwargs: Any
    ) -> None:
        """Begins a chain."""
        name = kwargs.get("name") or _name(serialized) or "chain"
        text = text_of(inputs)
        attributes = {"langchain.chain.type": name, "langchain.chain.name": name, "chain.inputs": text}
        attributes.update(_graph_attributes(kwargs.get("metadata")))
        self._steps.start(run_id, parent_run_id, Described("chain", "chain.chain", name, text, attributes))

    def on_chain_end(self, outputs: Any, *, run_id: Any, **kwargs: Any) -> None:
        """Ends a chain."""
        if self._steps.get(run_id) is not None:
            text = text_of(outputs)
            self._steps.end(run_id, text, attributes={"chain.outputs": text})

    def on_chain_error(self, error: BaseException, *, run_id: Any, **kwargs: Any) -> None:
        """Ends a chain that failed."""
        # An interrupted graph is no failure: it waits for a person.
        is_interrupt = type(error).__name__ in (
            "GraphInterrupt",
            "NodeInterrupt",
            "GraphBubbleUp",
            "ParentCommand",
        )
        self._steps.end(run_id, None, **({} if is_interrupt else {"error": error}))

    # Models; their calls are recorded on their own

    def on_chat_model_start(
        self, serialized: Any, messages: Any, *, run_id: Any, parent_run_id: Any = None, **kwargs: Any
    ) -> None:
        """Begins the use of a chat model."""
        self._start_model("chat_model.llm", serialized, messages, run_id, parent_run_id, kwargs)

    def on_llm_start(
        self, serialized: Any, prompts: Any, *, run_id: Any, parent_run_id: Any = None, **kwargs: Any
    ) -> None:
        """Begins the use of a model that completes text."""
        self._start_model("llm.llm", serialized, prompts, run_id, parent_run_id, kwargs)

    def _start_model(
        self,
        span_name: str,
        serialized: Any,
        inputs: Any,
        run_id: Any,
        parent_run_id: Any,
        kwargs: dict[str, Any],
    ) -> None:
        name = kwargs.get("name") or _name(serialized) or "model"
        parameters = kwargs.get("invocation_params") or {}
        attributes = {
            "langchain.llm.name": name,
            "langchain.llm.model": str(parameters.get("model") or parameters.get("model_name") or name),
            "langchain.chat_model.type": str(parameters.get("_type") or "chat"),
        }
        step = self._steps.start(run_id, parent_run_id, Described("llm", span_name, name, None, attributes))
        if step is not None:
            # Kept for models that make no request that we could see.
            step.inputs = inputs

    def on_llm_end(self, response: Any, *, run_id: Any, **kwargs: Any) -> None:
        """Ends the use of a model; one that ran inside of the process is recorded as the call that it is."""
        step = self._steps.get(run_id)
        if step is None:
            return
        attributes = None
        if not step.session.has_calls_inside(step.span):
            try:
                attributes = _call_attributes(step.inputs, response)
            except Exception:
                logger.exception("A call of a model could not be recorded.")
        self._steps.end(run_id, None, attributes=attributes)

    def on_llm_error(self, error: BaseException, *, run_id: Any, **kwargs: Any) -> None:
        """Ends the use of a model that failed."""
        self._steps.end(run_id, None, error=error)

    # Tools and retrievers

    def on_tool_start(
        self,
        serialized: Any,
        input_str: str,
        *,
        run_id: Any,
        parent_run_id: Any = None,
        inputs: Any = None,
        **kwargs: Any,
    ) -> None:
        """Begins a tool."""
        name = kwargs.get("name") or _name(serialized) or "tool"
        text = text_of(inputs if inputs is not None else input_str)
        attributes = {
            "langchain.tool.name": name,
            "langchain.tool.description": (serialized or {}).get("description"),
            "langchain.tool.input": text,
        }
        self._steps.start(run_id, parent_run_id, Described("tool", "tool.tool", name, text, attributes))

    def on_tool_end(self, output: Any, *, run_id: Any, **kwargs: Any) -> None:
        """Ends a tool."""
        if self._steps.get(run_id) is not None:
            text = text_of(getattr(output, "content", output))
            self._steps.end(run_id, text, attributes={"langchain.tool.output": text})

    def on_tool_error(self, error: BaseException, *, run_id: Any, **kwargs: Any) -> None:
        """Ends a tool that failed."""
        self._steps.end(run_id, None, error=error)

    def on_retriever_start(
        self, serialized: Any, query: str, *, run_id: Any, parent_run_id: Any = None, **kwargs: Any
    ) -> None:
        """Begins a retrieval."""
        name = kwargs.get("name") or _name(serialized) or "retriever"
        self._steps.start(run_id, parent_run_id, Described("retriever", "retriever.retriever", name, query))

    def on_retriever_end(self, documents: Any, *, run_id: Any, **kwargs: Any) -> None:
        """Ends a retrieval."""
        self._steps.end(run_id, documents)

    def on_retriever_error(self, error: BaseException, *, run_id: Any, **kwargs: Any) -> None:
        """Ends a retrieval that failed."""
        self._steps.end(run_id, None, error=error)


def _name(serialized: Any) -> str | None:
    if not isinstance(serialized, dict):
        return None
    identity = serialized.get("id")
    return serialized.get("name") or (str(identity[-1]) if isinstance(identity, list) and identity else None)


def _graph_attributes(metadata: Any) -> dict[str, Any]:
    """Where in a graph a run is."""
    known = ("langgraph_node", "langgraph_step", "langgraph_checkpoint_ns", "lc_agent_name")
    return {
        name.replace("langgraph_", "langgraph."): metadata[name] for name in known if name in (metadata or {})
    }


_ROLES = {"human": "user", "ai": "assistant", "AIMessageChunk": "assistant"}


def _message(message: Any) -> dict[str, Any]:
    kind = getattr(message, "type", "user")
    parts: list[dict[str, Any]] = []
    content = message.content if hasattr(message, "content") else str(message)
    if kind == "tool":
        response = {"type": "tool_call_response", "id": message.tool_call_id, "response": text_of(content)}
        return {"role": "tool", "parts": [response]}
    if content:
        parts.append({"type": "text", "content": content if isinstance(content, str) else text_of(content)})
    parts += [
        {"type": "tool_call", "id": call["id"], "name": call["name"], "arguments": call["args"]}
        for call in getattr(message, "tool_calls", None) or ()
    ]
    return {"role": _ROLES.get(kind, kind), "parts": parts}


def _call_attributes(inputs: Any, response: Any) -> dict[str, Any]:
    """A call that no request was made for, in OpenTelemetry's words, which it is recorded by."""
    prompt = inputs[0] if inputs else []
    prompt = (
        [{"role": "user", "parts": [{"type": "text", "content": prompt}]}]
        if isinstance(prompt, str)
        else [_message(message) for message in prompt]
    )
    said = []
    for generation in response.generations[0] if response.generations else ():
        message = getattr(generation, "message", None)
        reason = (generation.generation_info or {}).get("finish_reason") or "stop"
        parts = {"role": "assistant", "parts": [{"type": "text", "content": generation.text}]}
        said.append({**(parts if message is None else _message(message)), "finish_reason": reason})
    attributes = {
        "gen_ai.operation.name": "chat",
        "gen_ai.input.messages": text_of(prompt, None),
        "gen_ai.output.messages": text_of(said, None),
    }
    usage = getattr(getattr(response.generations[0][0], "message", None), "usage_metadata", None) or {}
    for name in ("input_tokens", "output_tokens"):
        if usage.get(name) is not None:
            attributes[f"gen_ai.usage.{name}"] = usage[name]
    return attributes


handler = LightningCallbackHandler()
"""The one handler of this process."""

_configured: ContextVar[LightningCallbackHandler | None] = ContextVar(
    "agentlightning_langchain", default=handler
)


def instrument() -> None:
    """Has the handler added to every run."""
    if not any(hook[0] is _configured for hook in context._configure_hooks):
        context.register_configure_hook(_configured, inheritable=True)


def uninstrument() -> None:
    """Leaves LangChain as it was."""
    context._configure_hooks[:] = [hook for hook in context._configure_hooks if hook[0] is not _configured]
