"""`emit_message`: a line of text as a span."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agentlightning.emitter._span import emit_span, user_attributes
from agentlightning.semconv import AGL_MESSAGE, LightningSpanAttributes
from agentlightning.tracer.base import get_active_tracer

if TYPE_CHECKING:
    from agentlightning.types import SpanLike

_BODY = LightningSpanAttributes.MESSAGE_BODY.value


def emit_message(message: str, attributes: dict[str, Any] | None = None, propagate: bool = True) -> None:
    """Records a message.

    Raises:
        TypeError: for something that is no string.
        ValueError: for more than a span may hold.
        RuntimeError: without an active tracer.
    """
    if not isinstance(message, str):
        raise TypeError(f"Message must be a string, got {type(message)}.")
    emit_span(
        AGL_MESSAGE,
        {_BODY: message, **user_attributes(attributes)},
        what="message",
        propagate=propagate,
        get_active=get_active_tracer,
        status=None,
    )


def get_message_value(span: SpanLike) -> str | None:
    """The message in a span, if it holds one.

    Raises:
        TypeError: if it is no string.
    """
    body = (span.attributes or {}).get(_BODY)
    if body is None or isinstance(body, str):
        return body
    raise TypeError(f"Message body must be a string, got {type(body)}.")
