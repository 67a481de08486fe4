"""Spans for what is around the calls of models: agents, chains, tools, tasks, turns, with their inputs and
outputs.

Frameworks tell of these in three ways, each of which has its helper here: callbacks that start and end
(`Step`), methods that can be wrapped (`recorded`), and spans of their own, which need no help.
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

from opentelemetry import context as otel_context
from opentelemetry import trace as trace_api

from agentlightning.instrumentation.patching import Patches
from agentlightning.tracer.otel import TraceSession, current_session

logger = logging.getLogger(__name__)

Kind = Literal["agent", "chain", "tool", "retriever", "team", "task", "workflow", "turn", "llm"]

MAX_TEXT = 32_768
"""How many characters of an input or output are kept; every step of a chain may hand on all that came
before."""
_TRACER_NAME = "agentlightning.instrumentation"
_OPENINFERENCE = {"agent": "AGENT", "tool": "TOOL", "retriever": "RETRIEVER"}
_OPERATIONS = {"agent": "invoke_agent", "tool": "execute_tool"}


def text_of(value: Any, limit: int | None = MAX_TEXT) -> str:
    """A value as text: as it is, or as JSON, with what has no JSON as its `str`; cut at `limit`
    characters."""
    if isinstance(value, str):
        text = value
    else:
        try:
            text = json.dumps(value, ensure_ascii=False, default=_plain)
        except Exception:
            text = str(value)
    if limit is None or len(text) <= limit:
        return text
    return f"{text[:limit]}… ({len(text)} characters)"


def _plain(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)
    if callable(dump):
        try:
            return dump(mode="json", exclude_none=True, warnings=False)
        except Exception:
            return str(value)
    if isinstance(value, (set, frozenset, tuple)):
        return list(value)
    if hasattr(value, "__dataclass_fields__"):
        return {name: getattr(value, name, None) for name in value.__dataclass_fields__}
    return str(value)


class Step:
    """One step of a framework, from its start to its end."""

    def __init__(
        self,
        session: TraceSession,
        kind: Kind,
        span_name: str,
        name: str | None,
        inputs: Any,
        attributes: Mapping[str, Any] | None = None,
        parent: trace_api.Span | None = None,
    ) -> None:
        self.session = session
        self.kind = kind
        context = None if parent is None else trace_api.set_span_in_context(parent)
        self.span = session.tracer_provider.get_tracer(_TRACER_NAME).start_span(
            span_name, context=context, attributes=_start_attributes(kind, name, inputs, attributes)
        )
        self.inputs: Any = None
        """What the framework has given in, where that is written only if nothing else says it."""
        self._done = False
        self._previous: otel_context.Context | None = None
        session.add_closer(self.end)

    def enter(self) -> None:
        """Makes the step the parent of what comes next in this context."""
        self._previous = otel_context.get_current()
        otel_context.attach(trace_api.set_span_in_context(self.span))

    def leave(self) -> None:
        """Undoes `enter`, unless this is another context, or somebody else has the floor."""
        if self._previous is not None and trace_api.get_current_span() is self.span:
            # Not `detach`, which wants the very context of `enter`: callbacks come from where they like.
            otel_context.attach(self._previous)

    def end(
        self,
        outputs: Any = None,
        *,
        error: BaseException | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        """Ends the span, the first time."""
        if self._done:
            return
        self._done = True
        self.session.remove_closer(self.end)
        try:
            if outputs is not None:
                text = text_of(outputs)
                self.span.set_attribute("output.value", text)
                if self.kind == "tool":
                    self.span.set_attribute("gen_ai.tool.call.result", text)
            if attributes:
                self.span.set_attributes(dict(attributes))
            if error is not None:
                self.span.record_exception(error)
                self.span.set_status(trace_api.StatusCode.ERROR, str(error))
            else:
                self.span.set_status(trace_api.StatusCode.OK)
        except Exception:
            logger.exception("The end of a step could not be recorded.")
        finally:
            self.span.end()


def _start_attributes(
    kind: Kind, name: str | None, inputs: Any, attributes: Mapping[str, Any] | None
) -> dict[str, Any]:
    start: dict[str, Any] = {
        "agentops.span.kind": kind,
        "openinference.span.kind": _OPENINFERENCE.get(kind, "CHAIN"),
    }
    if kind in _OPERATIONS:
        start["gen_ai.operation.name"] = _OPERATIONS[kind]
    if name is not None:
        if kind == "agent":
            start["agent.name"] = start["gen_ai.agent.name"] = name
        elif kind == "tool":
            start["gen_ai.tool.name"] = name
        else:
            start["agentops.entity.name"] = name
    if inputs is not None:
        text = text_of(inputs)
        start["input.value"] = text
        if kind == "tool":
            start["gen_ai.tool.call.arguments"] = text
    start.update({key: value for key, value in (attributes or {}).items() if value is not None})
    return start


class Described(NamedTuple):
    """What `recorded` is to write of a call of a method."""

    kind: Kind
    span_name: str
    name: str | None = None
    inputs: Any = None
    attributes: Mapping[str, Any] | None = None


Describe = Callable[..., "Described | None"]
"""Says what to record of a call from its arguments, `self` included; None for nothing."""


@contextmanager
def _step(
    describe: Describe, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[Callable[[Any], None]]:
    """The block as a step; yields what to tell the result to."""
    step = _begin(describe, args, kwargs)
    if step is None:
        yield lambda result: None
        return
    results: list[Any] = []
    step.enter()
    try:
        yield results.append
    except BaseException as exc:
        step.leave()
        step.end(error=exc)
        raise
    step.leave()
    step.end(results[0] if results else None)


def _begin(describe: Describe, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Step | None:
    session = current_session()
    if session is None:
        return None
    try:
        described = describe(*args, **kwargs)
        return None if described is None else Step(session, *described)
    except Exception:
        logger.exception("A step of a framework can't be recorded.")
        return None


def recorded(describe: Describe, result: Callable[[Any], Any] | None = None) -> Callable[[Any], Any]:
    """Makes what `Patches.replace` wants: a method recorded as a step, be it plain, async, or a generator of
    either kind. `result` picks what is written of the result; nothing of a generator's is."""

    def picked(value: Any) -> Any:
        if result is None:
            return value
        try:
            return result(value)
        except Exception:
            logger.exception("The result of a step could not be recorded.")
            return None

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.iscoroutinefunction(original):

            async def awaited(*args: Any, **kwargs: Any) -> Any:
                with _step(describe, args, kwargs) as done:
                    value = await original(*args, **kwargs)
                    done(picked(value))
                return value

            return awaited
        if inspect.isasyncgenfunction(original):

            async def streamed_async(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
                with _step(describe, args, kwargs) as done:
                    async for value in original(*args, **kwargs):
                        yield value
                        last = value
                    done(picked(last) if "last" in locals() else None)

            return streamed_async
        if inspect.isgeneratorfunction(original):

            def streamed(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
                with _step(describe, args, kwargs) as done:
                    value = yield from original(*args, **kwargs)
                    done(picked(value))
                return value

            return streamed

        def called(*args: Any, **kwargs: Any) -> Any:
            with _step(describe, args, kwargs) as done:
                value = original(*args, **kwargs)
                if inspect.isgenerator(value) or inspect.isawaitable(value) or inspect.isasyncgen(value):
                    # What comes of it comes later; the step is at least where it began.
                    return value
                done(picked(value))
            return value

        return called

    return make


def wrap(
    patches: Patches, owner: Any, name: str, describe: Describe, result: Callable[[Any], Any] | None = None
) -> bool:
    """Has a method recorded as a step; False if there is none of that name."""
    return patches.replace(owner, name, recorded(describe, result))
