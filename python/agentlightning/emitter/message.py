"""`emit_message`: a line of text as a span."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agentlightning.semconv import AGL_MESSAGE, LightningSpanAttributes
from agentlightning.tracer.base import get_active_tracer
from agentlightning.tracer.dummy import DummyTracer
from agentlightning.utils.otel import flatten_attributes, sanitize_attributes

if TYPE_CHECKING:
    from agentlightning.tracer.base import Tracer
    from agentlightning.types import SpanLike

_BODY = LightningSpanAttributes.MESSAGE_BODY.value


def emit_message(message: str, attributes: dict[str, Any] | None = None, propagate: bool = True) -> None:
    """Records a message.

    Raises:
        TypeError: for something that is no string.
        RuntimeError: without an active tracer.
    """
    if not isinstance(message, str):
        raise TypeError(f"Message must be a string, got {type(message)}.")
    tracer: Tracer | None
    if propagate:
        tracer = get_active_tracer()
        if tracer is None:
            raise RuntimeError("No active tracer found. Cannot emit message span.")
    else:
        tracer = DummyTracer()
    recorded: dict[str, Any] = {_BODY: message}
    if attributes:
        recorded.update(sanitize_attributes(flatten_attributes(attributes, expand_leaf_lists=False)))
    tracer.create_span(AGL_MESSAGE, attributes=recorded)


def get_message_value(span: SpanLike) -> str | None:
    """The message in a span, if it holds one.

    Raises:
        TypeError: if it is no string.
    """
    body = (span.attributes or {}).get(_BODY)
    if body is None or isinstance(body, str):
        return body
    raise TypeError(f"Message body must be a string, got {type(body)}.")
