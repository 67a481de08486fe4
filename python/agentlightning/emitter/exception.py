"""`emit_exception`: an exception that the agent has caught, as a span."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agentlightning.semconv import AGL_EXCEPTION
from agentlightning.tracer.base import get_active_tracer
from agentlightning.tracer.dummy import DummyTracer
from agentlightning.types import TraceStatus
from agentlightning.utils.otel import flatten_attributes, format_exception_attributes, sanitize_attributes

if TYPE_CHECKING:
    from agentlightning.tracer.base import Tracer


def emit_exception(
    exception: BaseException, attributes: dict[str, Any] | None = None, propagate: bool = True
) -> None:
    """Records an exception with its type, message and stack.

    Raises:
        TypeError: for something that is no exception.
        RuntimeError: without an active tracer.
    """
    if not isinstance(exception, BaseException):
        raise TypeError(f"Expected a BaseException instance, got {type(exception)}.")
    recorded = format_exception_attributes(exception)
    if attributes:
        recorded.update(sanitize_attributes(flatten_attributes(attributes, expand_leaf_lists=False)))
    tracer: Tracer | None
    if propagate:
        tracer = get_active_tracer()
        if tracer is None:
            raise RuntimeError("No active tracer found. Cannot emit exception span.")
    else:
        tracer = DummyTracer()
    # The span itself is fine: it says that the exception was seen.
    tracer.create_span(AGL_EXCEPTION, attributes=recorded, status=TraceStatus(status_code="OK"))
