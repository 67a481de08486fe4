"""`emit_exception`: an exception that the agent has caught, as a span."""

from __future__ import annotations

from typing import Any

from agentlightning.emitter._span import emit_span, shortened, user_attributes
from agentlightning.semconv import AGL_EXCEPTION
from agentlightning.tracer.base import get_active_tracer
from agentlightning.utils.otel import format_exception_attributes


def exception_attributes(exception: BaseException) -> dict[str, Any]:
    """The attributes that stand for an exception. Never an error, and never too large."""
    try:
        recorded = format_exception_attributes(exception)
    except Exception as error:
        # An exception whose own __str__ raises must not hide what it was raised for.
        recorded = {
            "exception.type": type(exception).__name__,
            "exception.message": f"<message not available: {type(error).__name__}>",
            "exception.escaped": True,
        }
    return {key: shortened(value) if isinstance(value, str) else value for key, value in recorded.items()}


def emit_exception(
    exception: BaseException, attributes: dict[str, Any] | None = None, propagate: bool = True
) -> None:
    """Records an exception with its type, message and stack, the latter two shortened if they are long.

    Raises:
        TypeError: for something that is no exception.
        ValueError: for more attributes than a span may hold.
        RuntimeError: without an active tracer.
    """
    if not isinstance(exception, BaseException):
        raise TypeError(f"Expected a BaseException instance, got {type(exception)}.")
    emit_span(
        AGL_EXCEPTION,
        # The span itself is fine: it says that the exception was seen.
        {**exception_attributes(exception), **user_attributes(attributes)},
        what="exception",
        propagate=propagate,
        get_active=get_active_tracer,
    )
