"""`emit_tool_call`: a call of a tool, by OpenTelemetry's GenAI conventions.

See <https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/#execute-tool-span>.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from agentlightning.emitter._span import OK, emit_span, json_text, shortened, user_attributes
from agentlightning.emitter.exception import exception_attributes
from agentlightning.semconv import GEN_AI_EXECUTE_TOOL, ToolAttributes
from agentlightning.tracer.base import get_active_tracer
from agentlightning.types import TraceStatus
from agentlightning.utils.otel import full_qualified_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agentlightning.types import SpanCoreFields

__all__ = ["emit_tool_call"]

_ABSENT: Any = object()


def emit_tool_call(
    name: str,
    arguments: Mapping[str, Any] | str | None = None,
    result: Any = _ABSENT,
    *,
    call_id: str | None = None,
    description: str | None = None,
    tool_type: Literal["function", "extension", "datastore"] = "function",
    error: BaseException | str | None = None,
    start_time: float | None = None,
    attributes: dict[str, Any] | None = None,
    propagate: bool = True,
) -> SpanCoreFields:
    """Records a call of a tool as a span `execute_tool {name}`.

    Args:
        name: The tool's name.
        arguments: What it was called with: a mapping, or JSON text as the model wrote it.
        result: What it returned, None included; kept as JSON text, a string as it is.
        call_id: The id that the model gave to the call.
        description: What the tool is for.
        tool_type: `function` for what the agent runs itself, `extension` for what runs at the model
            provider's, `datastore` for retrieval.
        error: With what it failed: an exception or words. The span's status is ERROR then.
        start_time: When it was called, in seconds since the epoch; the span ends now. Without, it is but a
            moment.
        attributes: Further attributes of the span.
        propagate: Whether the active tracer takes the span. If not, it is only returned.

    Raises:
        TypeError: for a name that is no string, or arguments or an error of another kind.
        ValueError: for an empty name, or more than a span may hold.
        RuntimeError: without an active tracer.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, not {type(name).__name__}")
    if not name:
        raise ValueError("name must not be empty: give the name of the tool")
    recorded: dict[str, Any] = {
        ToolAttributes.OPERATION_NAME.value: GEN_AI_EXECUTE_TOOL,
        ToolAttributes.NAME.value: name,
        ToolAttributes.TYPE.value: tool_type,
    }
    if call_id is not None:
        recorded[ToolAttributes.CALL_ID.value] = str(call_id)
    if description is not None:
        recorded[ToolAttributes.DESCRIPTION.value] = description
    if isinstance(arguments, str):
        recorded[ToolAttributes.CALL_ARGUMENTS.value] = arguments
    elif arguments is not None:
        if not hasattr(arguments, "keys"):
            raise TypeError(f"arguments must be a mapping or JSON text, not {type(arguments).__name__}")
        recorded[ToolAttributes.CALL_ARGUMENTS.value] = json_text(dict(arguments))
    if result is not _ABSENT:
        recorded[ToolAttributes.CALL_RESULT.value] = result if isinstance(result, str) else json_text(result)
    status = OK
    if isinstance(error, BaseException):
        recorded[ToolAttributes.ERROR_TYPE.value] = full_qualified_name(type(error))
        recorded.update(exception_attributes(error))
        status = TraceStatus(status_code="ERROR", description=recorded["exception.message"] or None)
    elif isinstance(error, str):
        # The conventions' word for errors that have no class.
        recorded[ToolAttributes.ERROR_TYPE.value] = "_OTHER"
        status = TraceStatus(status_code="ERROR", description=shortened(error))
    elif error is not None:
        raise TypeError(f"error must be an exception or a string, not {type(error).__name__}")
    recorded.update(user_attributes(attributes))
    return emit_span(
        f"{GEN_AI_EXECUTE_TOOL} {name}",
        recorded,
        what="tool call",
        propagate=propagate,
        get_active=get_active_tracer,
        status=status,
        start_time=start_time,
    )
