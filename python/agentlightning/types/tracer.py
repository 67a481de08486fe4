"""Spans, as the store keeps them, and their way out of OpenTelemetry. Times are seconds since the epoch."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, Dict, Literal, Protocol, Union

from pydantic import BaseModel, ConfigDict, PlainSerializer, ValidationInfo, WrapValidator
from typing_extensions import TypeAlias

from agentlightning.semconv import AGL_VIRTUAL

if TYPE_CHECKING:
    from opentelemetry import trace as trace_api
    from opentelemetry.sdk.resources import Resource as SdkResource
    from opentelemetry.sdk.trace import Event as SdkEvent
    from opentelemetry.sdk.trace import ReadableSpan
    from pydantic import ValidatorFunctionWrapHandler

__all__ = [
    "AttributeValue",
    "Attributes",
    "Event",
    "Link",
    "OtelResource",
    "Span",
    "SpanAttributeNames",
    "SpanContext",
    "SpanCoreFields",
    "SpanLike",
    "SpanNames",
    "SpanRecordingContext",
    "StatusCode",
    "TraceState",
    "TraceStatus",
    "convert_timestamp",
    "extract_extra_fields",
]

AttributeValue: TypeAlias = Union[
    str, bool, int, float, Sequence[str], Sequence[bool], Sequence[int], Sequence[float]
]
"""What OpenTelemetry allows as the value of an attribute, and what a span that you make takes.

A span that is read from a store may have any JSON: null, objects, lists of anything.
"""

STORED: dict[str, str] = {"spans": "as stored"}
"""The context to validate spans with that come from a store, and so may have any JSON as attributes."""

_PRIMITIVES = frozenset({str, bool, int, float})


def _read_attributes(
    value: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo
) -> dict[str, Any]:
    """Takes the common case, in which nothing is to be converted, ten times faster than the union does."""
    if info.context is STORED and type(value) is dict:
        # Out of the store's JSON, which is nobody else's.
        return value
    if type(value) is dict and all(type(key) is str for key in value):
        read: dict[str, Any] = {}
        for key, item in value.items():
            kind = type(item)
            if kind in _PRIMITIVES:
                read[key] = item
            elif kind in (list, tuple) and len(kinds := set(map(type, item))) <= 1 and kinds <= _PRIMITIVES:
                read[key] = kind(item)
            else:
                break
        else:
            return read
    checked: dict[str, Any] = handler(value)
    return checked


def _as_it_is(attributes: Any) -> Any:
    """Passes on what a store holds without a warning that it is none of the declared types."""
    return attributes


Attributes: TypeAlias = Annotated[
    Dict[str, AttributeValue], WrapValidator(_read_attributes), PlainSerializer(_as_it_is)
]
"""Attributes by key."""
TraceState: TypeAlias = Dict[str, str]
StatusCode: TypeAlias = Literal["UNSET", "OK", "ERROR"]

# Not-a-number and infinities become the strings "NaN", "Infinity" and "-Infinity" in JSON, never null.
_OPEN = ConfigDict(extra="allow", ser_json_inf_nan="strings")

_NANOSECONDS = 1e9
# A number above this cannot be seconds (the year 33658), so it is taken for nanoseconds.
_LARGEST_SECONDS = 1e12


def convert_timestamp(timestamp: float | None) -> float | None:
    """Seconds from a time in nanoseconds or seconds; None for None and 0."""
    if not timestamp:
        return None
    return timestamp / _NANOSECONDS if timestamp > _LARGEST_SECONDS else timestamp


def extract_extra_fields(src: Any, excluded: Iterable[str]) -> dict[str, Any]:
    """Attributes that an object has beyond those of its class, as JSON values.

    Leading underscores are dropped from the names; what is not JSON becomes its `str`. The SDK's own classes
    have none: what they keep beyond the span itself (samplers, locks) is no part of it.
    """
    if type(src).__module__.startswith("opentelemetry."):
        return {}
    names = set(excluded)
    extra = {
        name: value
        for key, value in getattr(src, "__dict__", {}).items()
        if (name := key.lstrip("_")) not in names and not hasattr(type(src), name)
    }
    if not extra:
        return {}
    fields: dict[str, Any] = json.loads(json.dumps(extra, default=str))
    return fields


def _plain(attributes: Mapping[str, Any] | None) -> dict[str, Any]:
    """A copy, in which numbers too long for a store are written out rather than lost with the span."""
    if not attributes:
        return {}
    return {key: str(value) if _too_long(value) else value for key, value in attributes.items()}


def _too_long(value: Any) -> bool:
    return type(value) is int and not -(2**63) <= value < 2**64


class SpanContext(BaseModel):
    """The ids of a span, as OpenTelemetry passes them around."""

    model_config = _OPEN

    trace_id: str
    """32 hexadecimal digits."""
    span_id: str
    """16 hexadecimal digits."""
    is_remote: bool
    trace_state: TraceState

    @classmethod
    def from_opentelemetry(cls, src: trace_api.SpanContext) -> SpanContext:
        """Reads OpenTelemetry's context."""
        return cls(
            trace_id=f"{src.trace_id:032x}",
            span_id=f"{src.span_id:016x}",
            is_remote=src.is_remote,
            trace_state=_plain(src.trace_state),
            **extract_extra_fields(src, cls.model_fields),
        )


class TraceStatus(BaseModel):
    """How a span went."""

    model_config = _OPEN

    status_code: StatusCode
    description: str | None = None

    @classmethod
    def from_opentelemetry(cls, src: trace_api.Status) -> TraceStatus:
        """Reads OpenTelemetry's status."""
        return cls(
            status_code=src.status_code.name,
            description=src.description,
            **extract_extra_fields(src, cls.model_fields),
        )


class Event(BaseModel):
    """Something that happened at one moment of a span."""

    model_config = _OPEN

    name: str
    attributes: Attributes
    timestamp: float | None = None

    @classmethod
    def from_opentelemetry(cls, src: SdkEvent) -> Event:
        """Reads OpenTelemetry's event."""
        return cls(
            name=src.name,
            attributes=_plain(src.attributes),
            timestamp=convert_timestamp(src.timestamp),
            **extract_extra_fields(src, cls.model_fields),
        )


class Link(BaseModel):
    """A pointer from a span to another."""

    model_config = _OPEN

    context: SpanContext
    attributes: Attributes | None = None

    @classmethod
    def from_opentelemetry(cls, src: trace_api.Link) -> Link:
        """Reads OpenTelemetry's link."""
        return cls(
            context=SpanContext.from_opentelemetry(src.context),
            attributes=_plain(src.attributes) or None,
            **extract_extra_fields(src, cls.model_fields),
        )


class OtelResource(BaseModel):
    """What produced a span."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    attributes: Attributes
    schema_url: str

    @classmethod
    def from_opentelemetry(cls, src: SdkResource) -> OtelResource:
        """Reads OpenTelemetry's resource."""
        return cls(attributes=_plain(src.attributes), schema_url=src.schema_url or "")


class SpanCoreFields(BaseModel):
    """What is known of a span before it has a place in a rollout."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    name: str
    status: TraceStatus
    attributes: Attributes
    start_time: float | None
    end_time: float | None


class Span(BaseModel):
    """One thing that happened in an attempt."""

    model_config = _OPEN

    rollout_id: str
    attempt_id: str
    sequence_id: int
    """Its place in the rollout; orders the spans of an attempt."""
    trace_id: str
    """32 hexadecimal digits."""
    span_id: str
    """16 hexadecimal digits."""
    parent_id: str | None
    name: str
    status: TraceStatus
    attributes: Attributes
    events: list[Event]
    links: list[Link]
    start_time: float | None
    end_time: float | None
    context: SpanContext | None
    parent: SpanContext | None
    resource: OtelResource

    @classmethod
    def from_opentelemetry(
        cls, src: ReadableSpan, rollout_id: str, attempt_id: str, sequence_id: int
    ) -> Span:
        """Reads a finished OpenTelemetry span and gives it its place in a rollout."""
        context = src.get_span_context()
        ids = SpanContext.from_opentelemetry(context) if context is not None else None
        parent = SpanContext.from_opentelemetry(src.parent) if src.parent is not None else None
        return cls(
            rollout_id=rollout_id,
            attempt_id=attempt_id,
            sequence_id=sequence_id,
            trace_id=ids.trace_id if ids is not None else "0" * 32,
            span_id=ids.span_id if ids is not None else "0" * 16,
            parent_id=parent.span_id if parent is not None else None,
            name=src.name,
            status=TraceStatus.from_opentelemetry(src.status),
            attributes=_plain(src.attributes),
            events=[Event.from_opentelemetry(event) for event in src.events or ()],
            links=[Link.from_opentelemetry(link) for link in src.links or ()],
            start_time=convert_timestamp(src.start_time),
            end_time=convert_timestamp(src.end_time),
            context=ids,
            parent=parent,
            resource=OtelResource.from_opentelemetry(src.resource),
            **extract_extra_fields(src, cls.model_fields),
        )

    @classmethod
    def from_attributes(
        cls,
        *,
        attributes: Attributes,
        rollout_id: str | None = None,
        attempt_id: str | None = None,
        sequence_id: int | None = None,
        name: str | None = None,
        trace_id: str | None = None,
        span_id: str | None = None,
        parent_id: str | None = None,
        start_time: float | None = None,
        end_time: float | None = None,
        resource: OtelResource | None = None,
        status: TraceStatus | None = None,
    ) -> Span:
        """Makes a span that OpenTelemetry never saw; ids that are not given are random."""
        own_trace_id = trace_id or secrets.token_hex(16)
        own_span_id = span_id or secrets.token_hex(8)

        def ids(of: str) -> SpanContext:
            return SpanContext(trace_id=own_trace_id, span_id=of, is_remote=False, trace_state={})

        return cls(
            rollout_id=rollout_id or "",
            attempt_id=attempt_id or "",
            sequence_id=sequence_id or 0,
            trace_id=own_trace_id,
            span_id=own_span_id,
            parent_id=parent_id,
            name=name or AGL_VIRTUAL,
            status=status or TraceStatus(status_code="OK"),
            attributes=attributes,
            events=[],
            links=[],
            start_time=start_time,
            end_time=end_time,
            context=ids(own_span_id),
            parent=ids(parent_id) if parent_id else None,
            resource=resource or OtelResource(attributes={}, schema_url=""),
        )

    @classmethod
    def from_core_fields(
        cls,
        core: SpanCoreFields,
        *,
        rollout_id: str | None = None,
        attempt_id: str | None = None,
        sequence_id: int | None = None,
    ) -> Span:
        """Makes a span of its core; it starts now if the core does not say when it did."""
        return cls.from_attributes(
            attributes=core.attributes,
            rollout_id=rollout_id,
            attempt_id=attempt_id,
            sequence_id=sequence_id,
            name=core.name,
            start_time=core.start_time or time.time(),
            end_time=core.end_time,
            status=core.status,
        )


class SpanRecordingContext(Protocol):
    """A span that is still open."""

    def record_exception(self, exception: BaseException) -> None:
        """Notes that the exception happened within the span."""
        ...

    def record_attributes(self, attributes: Attributes) -> None:
        """Adds attributes."""
        ...

    def record_status(self, status_code: StatusCode, description: str | None = None) -> None:
        """Says how the span went."""
        ...

    def get_recorded_span(self) -> SpanCoreFields:
        """The span as recorded so far."""
        ...


SpanLike: TypeAlias = Union["ReadableSpan", Span]
"""A span of OpenTelemetry's or of ours."""


class SpanNames(str, Enum):
    """Names of spans. Deprecated: use `agentlightning.semconv`."""

    REWARD = "agentlightning.reward"
    MESSAGE = "agentlightning.message"
    OBJECT = "agentlightning.object"
    EXCEPTION = "agentlightning.exception"
    VIRTUAL = "agentlightning.virtual"
    ROLLOUT_ID = "agentlightning.rollout_id"
    ATTEMPT_ID = "agentlightning.attempt_id"
    SPAN_SEQUENCE_ID = "agentlightning.span_sequence_id"


class SpanAttributeNames(str, Enum):
    """Names of attributes. Deprecated: use `agentlightning.semconv`."""

    MESSAGE = "message"
    OBJECT = "object"
