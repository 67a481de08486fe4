"""`emit_annotation` for a single fact, `operation` for a piece of work with inputs and outputs."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, overload

from agentlightning.emitter._span import check_size, choose_tracer, emit_span, json_text, user_attributes
from agentlightning.semconv import AGL_ANNOTATION, AGL_OPERATION, LightningSpanAttributes
from agentlightning.tracer.base import get_active_tracer
from agentlightning.utils.otel import check_attributes_sanity, flatten_attributes, sanitize_attributes

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from agentlightning.types import SpanCoreFields, SpanRecordingContext

logger = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])

_OPERATION_NAME = LightningSpanAttributes.OPERATION_NAME.value
_OPERATION_INPUT = LightningSpanAttributes.OPERATION_INPUT.value
_OPERATION_OUTPUT = LightningSpanAttributes.OPERATION_OUTPUT.value


def emit_annotation(annotation: dict[str, Any], propagate: bool = True) -> SpanCoreFields:
    """Records facts as one span.

    Args:
        annotation: Names and values; nested dicts and lists are flattened into dotted names.
        propagate: Whether the active tracer takes the span. If not, it is only returned.

    Raises:
        ValueError: for a value that a span can't hold, or more than it may hold.
        RuntimeError: without an active tracer.
    """
    attributes = flatten_attributes(annotation, expand_leaf_lists=False)
    check_attributes_sanity(attributes)
    return emit_span(
        AGL_ANNOTATION,
        sanitize_attributes(attributes),
        what="annotation",
        propagate=propagate,
        get_active=get_active_tracer,
    )


def _flat(prefix: str, value: Any) -> dict[str, Any]:
    """The attributes that hold `value` under `prefix`. Never an error, since it is the agent's own data: what
    has no dotted names becomes JSON text, and what is too much a note that it was."""
    try:
        attributes = sanitize_attributes(flatten_attributes({prefix: value}, expand_leaf_lists=False))
    except Exception:
        # A dict with keys that are no strings, something that contains itself, or whose repr fails.
        attributes = {prefix: json_text(value)}
    try:
        check_size(attributes)
    except ValueError as error:
        logger.warning("%s is not recorded: %s", prefix, error)
        return {prefix: f"[left out: {error}]"}
    return attributes


class OperationContext:
    """A piece of work recorded as one span: a context manager, or a decorator of a function.

    Which tracer records it is decided when the work starts, so that functions can be decorated at import
    time.
    """

    def __init__(self, name: str, attributes: dict[str, Any], propagate: bool = True) -> None:
        self.name = name
        self.initial_attributes = user_attributes(attributes)
        check_size(self.initial_attributes)
        self.propagate = propagate
        self._manager: AbstractContextManager[SpanRecordingContext] | None = None
        self._recording: SpanRecordingContext | None = None
        self._span: SpanCoreFields | None = None

    def __enter__(self) -> OperationContext:
        self._span = None
        tracer = choose_tracer(self.propagate, get_active_tracer, "operation")
        self._manager = tracer.operation_context(self.name, attributes=dict(self.initial_attributes))
        self._recording = self._manager.__enter__()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        manager, recording = self._manager, self._active()
        assert manager is not None
        try:
            return manager.__exit__(exc_type, exc_value, traceback)
        finally:
            self._manager, self._recording = None, None
            self._span = recording.get_recorded_span()

    def _active(self) -> SpanRecordingContext:
        if self._recording is None:
            raise RuntimeError("The operation is not running; use this inside its `with` block.")
        return self._recording

    def set_input(self, *args: Any, **kwargs: Any) -> None:
        """Records inputs, by position and by name.

        Raises:
            RuntimeError: outside the block.
        """
        recording = self._active()
        attributes: dict[str, Any] = {}
        for index, value in enumerate(args):
            attributes.update(_flat(f"{_OPERATION_INPUT}.args.{index}", value))
        for key, value in kwargs.items():
            attributes.update(_flat(f"{_OPERATION_INPUT}.{key}", value))
        recording.record_attributes(attributes)

    def set_output(self, output: Any) -> None:
        """Records the output.

        Raises:
            RuntimeError: outside the block.
        """
        self._active().record_attributes(_flat(_OPERATION_OUTPUT, output))

    def span(self) -> SpanCoreFields:
        """The recorded span.

        Raises:
            RuntimeError: before the block has ended.
        """
        if self._span is None:
            raise RuntimeError("The operation has not ended; its span is there after the `with` block.")
        return self._span

    def __call__(self, fn: F) -> F:
        """Decorates `fn`: each of its calls is recorded, with arguments and result."""
        attributes = {_OPERATION_NAME: getattr(fn, "__name__", type(fn).__name__), **self.initial_attributes}
        signature = inspect.signature(fn)

        def start() -> OperationContext:
            context = OperationContext(self.name, {}, propagate=self.propagate)
            context.initial_attributes = attributes
            return context

        def record_call(context: OperationContext, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            context._active().record_attributes(_call_attributes(signature, args, kwargs))

        if inspect.iscoroutinefunction(fn):

            @functools.wraps(fn)
            async def async_wrapper(*args: Any, **kwargs: Any) -> Any:
                with start() as context:
                    record_call(context, args, kwargs)
                    result = await fn(*args, **kwargs)
                    context.set_output(result)
                    return result

            return async_wrapper  # type: ignore[return-value]

        @functools.wraps(fn)
        def sync_wrapper(*args: Any, **kwargs: Any) -> Any:
            with start() as context:
                record_call(context, args, kwargs)
                result = fn(*args, **kwargs)
                context.set_output(result)
                return result

        return sync_wrapper  # type: ignore[return-value]


def _call_attributes(
    signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The arguments of a call under the names of the parameters that take them."""
    attributes: dict[str, Any] = {}
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError:
        # The call itself is about to fail; what was passed is worth keeping nevertheless.
        for index, value in enumerate(args):
            attributes.update(_flat(f"{_OPERATION_INPUT}.args.{index}", value))
        for key, value in kwargs.items():
            attributes.update(_flat(f"{_OPERATION_INPUT}.kwargs.{key}", value))
        return attributes
    bound.apply_defaults()
    for parameter in signature.parameters.values():
        value = bound.arguments[parameter.name]
        prefix = f"{_OPERATION_INPUT}.{parameter.name}"
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            for index, item in enumerate(value):
                attributes.update(_flat(f"{prefix}.{index}", item))
        elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
            for key, item in value.items():
                attributes.update(_flat(f"{prefix}.{key}", item))
        else:
            attributes.update(_flat(prefix, value))
    return attributes


@overload
def operation(fn: F, *, propagate: bool = ..., **additional_attributes: Any) -> F: ...


@overload
def operation(
    fn: None = None, *, propagate: bool = ..., name: str | None = ..., **additional_attributes: Any
) -> OperationContext: ...


def operation(
    fn: Callable[..., Any] | None = None,
    *,
    propagate: bool = True,
    name: str | None = None,
    **additional_attributes: Any,
) -> Any:
    """Records a piece of work as one span: `@operation`, `@operation(...)` or `with operation(...) as op`.

    Args:
        fn: The function to decorate.
        propagate: Whether the active tracer takes the span.
        name: The operation's name; a decorated function's own by default.
        additional_attributes: Further attributes of the span.

    Raises:
        ValueError: for a first argument that can't be called, a name given twice, or more attributes than a
            span may hold.
    """
    if fn is not None and not callable(fn):
        raise ValueError("operation() takes a callable, or keyword arguments only.")
    if name is not None:
        if _OPERATION_NAME in additional_attributes:
            raise ValueError(f"Cannot specify both name and {_OPERATION_NAME}.")
        additional_attributes[_OPERATION_NAME] = name
    context = OperationContext(AGL_OPERATION, additional_attributes, propagate=propagate)
    return context if fn is None else context(fn)
