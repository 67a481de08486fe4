"""Spans for what is around the calls of models: agents, chains, tools, tasks, turns, with their inputs and
outputs.

Frameworks tell of these in three ways, each of which has its helper here: callbacks that start and end
(`Step`), methods that can be wrapped (`recorded`), and spans of their own, which need no help.
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from typing import Any, Literal, NamedTuple
from weakref import WeakSet

from opentelemetry import context as otel_context
from opentelemetry import trace as trace_api

from agentlightning.instrumentation.patching import Patches
from agentlightning.tracer.otel import TraceSession, current_session

logger = logging.getLogger(__name__)

Kind = Literal["agent", "chain", "tool", "retriever", "team", "crew", "task", "workflow", "turn", "llm"]

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


class Described(NamedTuple):
    """What is written of a step when it begins."""

    kind: Kind
    span_name: str
    name: str | None = None
    inputs: Any = None
    attributes: Mapping[str, Any] | None = None


class Step:
    """One step of a framework, from its start to its end."""

    def __init__(
        self,
        session: TraceSession,
        described: Described,
        parent: trace_api.Span | None = None,
    ) -> None:
        self.session = session
        self.kind = described.kind
        context = None if parent is None else trace_api.set_span_in_context(parent)
        self.span = session.tracer_provider.get_tracer(_TRACER_NAME).start_span(
            described.span_name, context=context, attributes=_start_attributes(described)
        )
        self.inputs: Any = None
        """What the framework has given in, where that is written only if nothing else says it."""
        self.forget: Callable[[], object] = lambda: None
        """What is done when it has ended."""
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
        self.forget()
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


class Steps:
    """The steps of a framework whose callbacks name each by a key, and the one around it."""

    def __init__(self) -> None:
        self._steps: dict[Any, Step] = {}
        self._spans: WeakSet[trace_api.Span] = WeakSet()

    def get(self, key: Any) -> Step | None:
        """The step of that key, while it is open."""
        return self._steps.get(key)

    def start(self, key: Any, parent_key: Any, described: Described) -> Step | None:
        """Begins a step; None outside of a trace, or if it has begun."""
        session = current_session()
        if session is None or key in self._steps:
            return None
        try:
            step = Step(session, described, self._parent(session, self._steps.get(parent_key)))
        except Exception:
            logger.exception("A step of a framework can't be recorded.")
            return None
        self._spans.add(step.span)
        self._steps[key] = step
        # Also when its trace ends, and nobody has said that the step has.
        step.forget = lambda: self._steps.pop(key, None)
        step.enter()
        return step

    def end(self, key: Any, outputs: Any = None, **kwargs: Any) -> None:
        """Ends a step, if there is one of that key; see `Step.end`."""
        step = self._steps.pop(key, None)
        if step is not None:
            step.leave()
            step.end(outputs, **kwargs)

    def _parent(self, session: TraceSession, around: Step | None) -> trace_api.Span | None:
        """The span that a step belongs below: None for the one that is current, else that of the step around
        it.

        A step may be deeper inside than the framework says: below an operation of the agent's own. But it may
        also be in another thread or task, which has never heard of the step around it, or beside one that is
        not over.
        """
        if around is None:
            return None
        current = trace_api.get_current_span()
        if current not in self._spans and session.is_inside(current, around.span):
            return None
        return around.span


def _start_attributes(described: Described) -> dict[str, Any]:
    kind, _, name, inputs, attributes = described
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


Describe = Callable[..., "Described | None"]
"""Says what to record of a call from its arguments, `self` included; None for nothing."""


@contextmanager
def _inside(step: Step | None, picked: Callable[[Any], Any]) -> Iterator[Callable[[Any], None]]:
    """The block as a step, if there is one; yields what to tell the result to."""
    if step is None:
        yield lambda result: None
        return
    results: list[Any] = []
    step.enter()
    try:
        yield results.append
    except GeneratorExit:
        # Nobody reads on, which is no failure.
        step.leave()
        step.end()
        raise
    except BaseException as exc:
        step.leave()
        step.end(error=exc)
        raise
    step.leave()
    step.end(picked(results[0]) if results else None)


def _begin(describe: Describe, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Step | None:
    session = current_session()
    if session is None:
        return None
    try:
        described = describe(*args, **kwargs)
        return None if described is None else Step(session, described)
    except Exception:
        logger.exception("A step of a framework can't be recorded.")
        return None


def recorded(describe: Describe, result: Callable[[Any], Any] | None = None) -> Callable[[Any], Any]:
    """Makes what `Patches.replace` wants: a method recorded as a step, be it plain, async, or a generator of
    either kind. `result` picks what is written of the result, or of the last item of an async generator."""

    def picked(value: Any) -> Any:
        try:
            return value if result is None else result(value)
        except Exception:
            logger.exception("The result of a step could not be recorded.")
            return None

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.iscoroutinefunction(original):

            async def awaited(*args: Any, **kwargs: Any) -> Any:
                return await _await(_begin(describe, args, kwargs), original(*args, **kwargs), picked)

            return awaited
        if inspect.isasyncgenfunction(original):

            async def streamed_async(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
                items = _iterate(_begin(describe, args, kwargs), original(*args, **kwargs), picked)
                async with aclosing(items):
                    async for item in items:
                        yield item

            return streamed_async
        if inspect.isgeneratorfunction(original):

            def streamed(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
                return (
                    yield from _generate(_begin(describe, args, kwargs), original(*args, **kwargs), picked)
                )

            return streamed

        def called(*args: Any, **kwargs: Any) -> Any:
            step = _begin(describe, args, kwargs)
            if step is None:
                return original(*args, **kwargs)
            step.enter()
            try:
                value = original(*args, **kwargs)
            except BaseException as exc:
                step.leave()
                step.end(error=exc)
                raise
            step.leave()
            # A plain function may hand out what is yet to run.
            if inspect.isgenerator(value):
                return _generate(step, value, picked)
            if inspect.isasyncgen(value):
                return _iterate(step, value, picked)
            if inspect.iscoroutine(value):
                return _await(step, value, picked)
            step.end(picked(value))
            return value

        return called

    return make


async def _await(step: Step | None, value: Any, picked: Callable[[Any], Any]) -> Any:
    with _inside(step, picked) as done:
        result = await value
        done(result)
        return result


async def _iterate(step: Step | None, items: Any, picked: Callable[[Any], Any]) -> AsyncGenerator[Any, None]:
    last: list[Any] = []
    with _inside(step, picked) as done:
        async with aclosing(items):
            async for item in items:
                last[:] = [item]
                yield item
        for item in last:
            done(item)


def _generate(step: Step | None, items: Any, picked: Callable[[Any], Any]) -> Generator[Any, Any, Any]:
    with _inside(step, picked) as done:
        result = yield from items
        done(result)
        return result


def wrap(
    patches: Patches, owner: Any, name: str, describe: Describe, result: Callable[[Any], Any] | None = None
) -> bool:
    """Has a method recorded as a step; False if there is none of that name."""
    return patches.replace(owner, name, recorded(describe, result))


def enriched(inputs: Callable[..., Any], result: Callable[[Any], Any] | None = None) -> Callable[[Any], Any]:
    """Makes what `Patches.replace` wants: a method that runs inside of a span of the framework's own, on
    which its inputs and its result are written. `inputs` picks them from the arguments, `self` included."""

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.isasyncgenfunction(original):

            async def streamed(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
                span = _write_inputs(inputs, args, kwargs)
                last = None
                async for value in original(*args, **kwargs):
                    yield value
                    last = value
                _write_result(span, result, last)

            return streamed

        async def awaited(*args: Any, **kwargs: Any) -> Any:
            span = _write_inputs(inputs, args, kwargs)
            value = await original(*args, **kwargs)
            _write_result(span, result, value)
            return value

        return awaited

    return make


def _write_inputs(
    inputs: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> trace_api.Span | None:
    span = trace_api.get_current_span()
    if current_session() is None or not span.is_recording():
        return None
    try:
        span.set_attribute("input.value", text_of(inputs(*args, **kwargs)))
    except Exception:
        logger.exception("The inputs of a step could not be recorded.")
    return span


def _write_result(span: trace_api.Span | None, result: Callable[[Any], Any] | None, value: Any) -> None:
    if span is None or value is None:
        return
    try:
        span.set_attribute("output.value", text_of(value if result is None else result(value)))
    except Exception:
        logger.exception("The result of a step could not be recorded.")


def patch_family(patches: Patches, base: type, names: Sequence[str], make: Callable[[Any], Any]) -> None:
    """Replaces methods of a class and of all that derive from it, also of those that are made later."""

    def patch(cls: type) -> None:
        for name in names:
            if name in cls.__dict__:
                patches.replace(cls, name, make)

    waiting, seen = [base], set()
    while waiting:
        cls = waiting.pop()
        if cls not in seen:
            seen.add(cls)
            patch(cls)
            waiting.extend(cls.__subclasses__())

    def patched_init(original: Callable[..., Any]) -> Callable[..., Any]:
        def init(self: Any, *args: Any, **kwargs: Any) -> None:
            if type(self) not in seen:
                seen.add(type(self))
                for cls in type(self).__mro__:
                    if issubclass(cls, base):
                        patch(cls)
            original(self, *args, **kwargs)

        return init

    patches.replace(base, "__init__", patched_init)
