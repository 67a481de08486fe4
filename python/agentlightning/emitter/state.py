"""State events: an attempt, or a part of one that has a name, has started, finished or failed.

The runner writes those of the attempt itself. An agent writes those of its own parts, each under a name.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from agentlightning.emitter._span import OK, emit_span, shortened, user_attributes
from agentlightning.emitter.exception import exception_attributes
from agentlightning.semconv import AGL_STATE, LightningSpanAttributes, StateEvent
from agentlightning.tracer.base import get_active_tracer
from agentlightning.types import TraceStatus

if TYPE_CHECKING:
    from agentlightning.types import SpanCoreFields, SpanLike

__all__ = ["emit_failed", "emit_finished", "emit_started", "failure_reason", "get_state_event"]

_EVENT = LightningSpanAttributes.STATE_EVENT.value
_NAME = LightningSpanAttributes.STATE_NAME.value
_REASON = LightningSpanAttributes.STATE_REASON.value


def emit_started(
    name: str | None = None, *, attributes: dict[str, Any] | None = None, propagate: bool = True
) -> SpanCoreFields:
    """Records that something has started.

    Args:
        name: The part of the attempt that has; without, it is the attempt itself.
        attributes: Further attributes of the span.
        propagate: Whether the active tracer takes the span. If not, it is only returned.

    Raises:
        TypeError: for a name that is no string.
        ValueError: for more than a span may hold.
        RuntimeError: without an active tracer.
    """
    return _emit(StateEvent.STARTED, name, {}, attributes, OK, propagate)


def emit_finished(
    name: str | None = None, *, attributes: dict[str, Any] | None = None, propagate: bool = True
) -> SpanCoreFields:
    """Records that something has finished well. Arguments and errors are those of `emit_started`."""
    return _emit(StateEvent.FINISHED, name, {}, attributes, OK, propagate)


def emit_failed(
    error: BaseException | str | None = None,
    *,
    name: str | None = None,
    reason: str | None = None,
    attributes: dict[str, Any] | None = None,
    propagate: bool = True,
) -> SpanCoreFields:
    """Records that something has failed. The span's status is ERROR.

    Args:
        error: What went wrong: an exception, of which type, message and stack are kept, or words.
        name: The part of the attempt that has failed; without, it is the attempt itself.
        reason: Why, in one word; by default what `failure_reason` makes of the error.
        attributes: Further attributes of the span.
        propagate: Whether the active tracer takes the span. If not, it is only returned.

    Raises:
        TypeError: for an error that is neither an exception nor a string, or a name or reason that is no
            string.
        ValueError: for more than a span may hold.
        RuntimeError: without an active tracer.
    """
    recorded: dict[str, Any] = {}
    if isinstance(error, BaseException):
        recorded.update(exception_attributes(error))
        description = recorded["exception.message"] or recorded["exception.type"]
    elif error is None or isinstance(error, str):
        description = None if error is None else shortened(error)
    else:
        raise TypeError(f"error must be an exception or a string, not {type(error).__name__}")
    if reason is None:
        reason = failure_reason(error)
    elif not isinstance(reason, str):
        raise TypeError(f"reason must be a string, not {type(reason).__name__}")
    recorded[_REASON] = reason
    status = TraceStatus(status_code="ERROR", description=description)
    return _emit(StateEvent.FAILED, name, recorded, attributes, status, propagate)


def failure_reason(error: BaseException | str | None) -> str:
    """The word for a failure: `cancelled` when somebody stopped it, `timeout` when its time was up, else
    `error`."""
    if isinstance(error, (asyncio.CancelledError, KeyboardInterrupt)):
        return "cancelled"
    # Before Python 3.11, asyncio had a TimeoutError of its own.
    if isinstance(error, (TimeoutError, asyncio.TimeoutError)):
        return "timeout"
    return "error"


def get_state_event(span: SpanLike) -> StateEvent | None:
    """What a span says about state, or None if it says nothing."""
    value = (span.attributes or {}).get(_EVENT)
    return StateEvent(value) if value in tuple(StateEvent) else None


def _emit(
    event: StateEvent,
    name: str | None,
    recorded: dict[str, Any],
    attributes: dict[str, Any] | None,
    status: TraceStatus,
    propagate: bool,
) -> SpanCoreFields:
    if name is not None and not isinstance(name, str):
        raise TypeError(f"name must be a string, not {type(name).__name__}")
    about = {} if name is None else {_NAME: name}
    return emit_span(
        AGL_STATE,
        {_EVENT: event.value, **about, **recorded, **user_attributes(attributes)},
        what="state",
        propagate=propagate,
        get_active=get_active_tracer,
        status=status,
    )
