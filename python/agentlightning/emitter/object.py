"""`emit_object`: a value as a span, and back."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

from agentlightning.emitter._span import emit_span, user_attributes
from agentlightning.semconv import AGL_OBJECT, LightningSpanAttributes
from agentlightning.tracer.base import get_active_tracer
from agentlightning.utils.otel import full_qualified_name

if TYPE_CHECKING:
    from agentlightning.types import SpanCoreFields, SpanLike

_TYPE = LightningSpanAttributes.OBJECT_TYPE.value
_LITERAL = LightningSpanAttributes.OBJECT_LITERAL.value
_JSON = LightningSpanAttributes.OBJECT_JSON.value


def encode_object(obj: Any) -> dict[str, Any]:
    """The attributes that hold `obj`: its type, and its literal or its JSON.

    Raises:
        RuntimeError: for what JSON has no form for.
    """
    if isinstance(obj, (str, int, float, bool)):
        return {_TYPE: type(obj).__name__, _LITERAL: str(obj)}
    if isinstance(obj, bytes):
        return {_TYPE: "bytes", _LITERAL: base64.b64encode(obj).decode("ascii")}
    try:
        text = json.dumps(obj)
    except (TypeError, ValueError, RecursionError) as exc:
        raise RuntimeError(
            f"Object must be JSON serializable, got {full_qualified_name(type(obj))}."
        ) from exc
    return {_TYPE: full_qualified_name(type(obj)), _JSON: text}


def emit_object(
    object: Any, attributes: dict[str, Any] | None = None, propagate: bool = True
) -> SpanCoreFields:
    """Records a value, which `get_object_value` gives back.

    Raises:
        ValueError: for more than a span may hold.
        RuntimeError: for what JSON has no form for, and without an active tracer.
    """
    return emit_span(
        AGL_OBJECT,
        {**encode_object(object), **user_attributes(attributes)},
        what="object",
        propagate=propagate,
        get_active=get_active_tracer,
    )


def get_object_value(span: SpanLike) -> Any:
    """The value in a span, or None if it holds none.

    Raises:
        RuntimeError: for broken JSON or an unknown type.
    """
    attributes = span.attributes or {}
    text = attributes.get(_JSON)
    if text is not None:
        try:
            return json.loads(text)  # type: ignore[arg-type]
        except (TypeError, ValueError) as exc:
            raise RuntimeError(f"Attribute {_JSON} is not valid JSON.") from exc
    literal = attributes.get(_LITERAL)
    if literal is None:
        return None
    match attributes.get(_TYPE, "str"):
        case "str":
            return str(literal)
        case "int":
            return int(str(literal))
        case "float":
            return float(str(literal))
        case "bool":
            return str(literal).lower() == "true"
        case "bytes":
            return base64.b64decode(str(literal))
        case kind:
            raise RuntimeError(f"Unsupported type of an object literal: {kind}.")
