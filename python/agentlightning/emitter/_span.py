"""What all emitters do alike: choose the tracer, mind the size, make the span."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from agentlightning.env_var import LightningEnvVar, resolve_int_env_var
from agentlightning.tracer.dummy import DummyTracer
from agentlightning.types import TraceStatus
from agentlightning.utils.otel import flatten_attributes, sanitize_attributes

if TYPE_CHECKING:
    from agentlightning.tracer.base import Tracer
    from agentlightning.types import SpanCoreFields

logger = logging.getLogger(__name__)

MAX_BYTES = 16 * 1024 * 1024
"""How much the attributes of one span may take, unless AGL_EMITTER_MAX_BYTES says otherwise."""
MAX_ATTRIBUTES = 10_000
"""How many attributes one span may have."""
MAX_ERROR_BYTES = 64 * 1024
"""How much of an exception's message and of its stack is kept."""

OK = TraceStatus(status_code="OK")


def user_attributes(attributes: Mapping[str, Any] | None) -> dict[str, Any]:
    """A caller's own attributes, flattened and made such that a span can hold them."""
    if not attributes:
        return {}
    return sanitize_attributes(flatten_attributes(dict(attributes), expand_leaf_lists=False))


def choose_tracer(propagate: bool, get_active: Callable[[], Tracer | None], what: str) -> Tracer:
    """The tracer that takes a span: the active one, or, without `propagate`, one that keeps nothing.

    Raises:
        RuntimeError: if there is no active tracer.
    """
    if not propagate:
        return DummyTracer()
    tracer = get_active()
    if tracer is None:
        raise RuntimeError(
            f"No active tracer found. Cannot emit {what} span. Run inside a tracer's trace_context(), or "
            "pass propagate=False to have the span returned only."
        )
    return tracer


def emit_span(
    name: str,
    attributes: dict[str, Any],
    *,
    what: str,
    propagate: bool,
    get_active: Callable[[], Tracer | None],
    status: TraceStatus | None = OK,
    start_time: float | None = None,
) -> SpanCoreFields:
    """Makes one span.

    Args:
        name: The span's name.
        attributes: Its attributes, flat.
        what: What it holds, as messages call it.
        propagate: Whether the active tracer takes it.
        get_active: Finds the active tracer.
        status: Its status; None leaves that to the tracer.
        start_time: When it started, in seconds since the epoch; it ends now. Without, it is but a moment.

    Raises:
        ValueError: for more than a span may hold.
        RuntimeError: without an active tracer.
    """
    check_size(attributes)
    tracer = choose_tracer(propagate, get_active, what)
    if start_time is None:
        return tracer.create_span(name, attributes=attributes, status=status)
    with ExitStack() as open_span:
        recording = open_span.enter_context(
            tracer.operation_context(name, attributes=attributes, start_time=start_time)
        )
        if status is not None:
            recording.record_status(status.status_code, status.description)
    return recording.get_recorded_span()


def check_size(attributes: Mapping[str, Any]) -> None:
    """`ValueError`, naming the largest attribute, if these are more than a span may hold."""
    if len(attributes) > MAX_ATTRIBUTES:
        *_, last = attributes
        raise ValueError(
            f"a span holds at most {MAX_ATTRIBUTES} attributes, but this one has {len(attributes)}, up to "
            f"{last!r}: use emit_object() for large structures, or record less"
        )
    limit = max_bytes()
    if sum(map(_at_most, attributes.values())) <= limit:
        return
    sizes = {key: _size(value) for key, value in attributes.items()}
    total = sum(sizes.values())
    if total > limit:
        largest = max(sizes, key=lambda key: sizes[key])
        raise ValueError(
            f"attribute {largest!r} takes {sizes[largest]} bytes, and with it the span takes {total} where "
            f"{limit} are allowed: shorten it, or raise {LightningEnvVar.AGL_EMITTER_MAX_BYTES.value}"
        )


def max_bytes() -> int:
    """How much the attributes of one span may take."""
    return resolve_int_env_var(LightningEnvVar.AGL_EMITTER_MAX_BYTES, fallback=MAX_BYTES)


def _at_most(value: Any) -> int:
    """An upper bound of `_size` that costs nothing."""
    if isinstance(value, str):
        return 4 * len(value)
    return sum(map(_at_most, value)) if isinstance(value, (list, tuple)) else 8


def _size(value: Any) -> int:
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogatepass"))
    return sum(map(_size, value)) if isinstance(value, (list, tuple)) else 8


def shortened(text: str, limit: int = MAX_ERROR_BYTES) -> str:
    """A text of at most so many characters, in which a note stands for the middle of a longer one."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[{len(text) - 2 * half} characters left out]\n{text[-half:]}"


def json_text(value: Any) -> str:
    """An agent's own data as JSON text. Never an error: what has no JSON becomes its `str`."""
    try:
        return json.dumps(value, default=_text, skipkeys=True)
    except (ValueError, RecursionError):
        # It contains itself, or is nested too deeply.
        return json.dumps(shortened(_text(value)))


def _text(value: Any) -> str:
    try:
        return str(value)
    except Exception as error:
        return f"<{type(value).__name__} whose str fails: {type(error).__name__}>"
