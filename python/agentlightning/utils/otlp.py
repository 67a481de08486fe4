"""An OTLP exporter that says which rollout its spans belong to, and a reader and a route for what such a one
sends.

Needs the package `opentelemetry-exporter-otlp-proto-http`.
"""

from __future__ import annotations

import gzip
import io
import logging
import os
import re
import zlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event as SdkEvent
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.trace import Link, SpanContext, Status, StatusCode

from agentlightning.semconv import LightningResourceAttributes
from agentlightning.types import Span
from agentlightning.utils.otel import sanitize_attributes

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    from starlette.requests import Request
    from starlette.responses import Response

    T_request = TypeVar("T_request", bound=Message)

try:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
except ImportError as error:
    raise ImportError("exporting spans needs the package opentelemetry-exporter-otlp-proto-http") from error

__all__ = ["LightningStoreOTLPExporter", "handle_otlp_export", "spans_from_proto"]

logger = logging.getLogger(__name__)

_ROLLOUT = LightningResourceAttributes.ROLLOUT_ID.value
_ATTEMPT = LightningResourceAttributes.ATTEMPT_ID.value
_SEQUENCE = LightningResourceAttributes.SPAN_SEQUENCE_ID.value

PROTOBUF_CT = "application/x-protobuf"
_BODY_LIMIT = 256 << 20
"""Bytes that a request may have, decompressed; as many as a store's server takes."""


class LightningStoreOTLPExporter(OTLPSpanExporter):
    """Exports spans to a store, under a rollout and an attempt, once `enable_store_otlp` has said which.

    Before that, spans go nowhere; a subclass whose `should_bypass` is False exports them where an
    `OTLPSpanExporter` would.
    """

    def __init__(self, endpoint: str | None = None, **kwargs: Any) -> None:
        """Makes an exporter; arguments are those of `OTLPSpanExporter`.

        To a store that asks for a key, the one in AGL_KEY is sent, unless there are `headers`.
        """
        super().__init__(endpoint, **kwargs)
        if "headers" not in kwargs and (key := os.environ.get("AGL_KEY")):
            kwargs["headers"] = {"authorization": f"Bearer {key}"}
        self._options = kwargs
        # An exporter's endpoint is settled when it is made, so there is one for each store.
        self._exporters: dict[str, OTLPSpanExporter] = {}
        self._store_endpoint: str | None = None
        self._rollout_id: str | None = None
        self._attempt_id: str | None = None

    @property
    def endpoint(self) -> str:
        """Where spans go."""
        return self._store_endpoint or self._endpoint

    @property
    def rollout_id(self) -> str | None:
        """The rollout that spans belong to, if that has been said."""
        return self._rollout_id

    @property
    def attempt_id(self) -> str | None:
        """The attempt that spans belong to, if that has been said."""
        return self._attempt_id

    def enable_store_otlp(self, endpoint: str, rollout_id: str, attempt_id: str) -> None:
        """Exports to `endpoint` from here on, such as a store's `otlp_traces_endpoint()`, under these ids."""
        if endpoint not in self._exporters:
            self._exporters[endpoint] = OTLPSpanExporter(endpoint, **self._options)
        self._store_endpoint = endpoint
        self._rollout_id = rollout_id
        self._attempt_id = attempt_id

    def disable_store_otlp(self) -> None:
        """Undoes `enable_store_otlp`."""
        self._store_endpoint = None
        self._rollout_id = None
        self._attempt_id = None

    def should_bypass(self) -> bool:
        """Whether spans go nowhere while it has not been said to which rollout they belong."""
        return True

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Exports spans. They are told apart by their resources, so that of each span is left as it is, and a
        copy is exported."""
        if self._store_endpoint is None or self._rollout_id is None or self._attempt_id is None:
            return SpanExportResult.SUCCESS if self.should_bypass() else super().export(spans)
        ids = Resource(
            {
                LightningResourceAttributes.ROLLOUT_ID.value: self._rollout_id,
                LightningResourceAttributes.ATTEMPT_ID.value: self._attempt_id,
            }
        )
        return self._exporters[self._store_endpoint].export([_under(span, ids) for span in spans])

    def shutdown(self) -> None:
        """Closes the connections."""
        for exporter in self._exporters.values():
            exporter.shutdown()  # type: ignore[no-untyped-call, unused-ignore]
        super().shutdown()  # type: ignore[no-untyped-call, unused-ignore]


def _under(span: ReadableSpan, ids: Resource) -> ReadableSpan:
    """A copy of a span whose resource has these attributes, too."""
    return ReadableSpan(
        name=span.name,
        context=span.get_span_context(),
        parent=span.parent,
        resource=span.resource.merge(ids),
        attributes=span.attributes,
        events=span.events,
        links=span.links,
        kind=span.kind,
        instrumentation_scope=span.instrumentation_scope,
        status=span.status,
        start_time=span.start_time,
        end_time=span.end_time,
    )


async def spans_from_proto(
    request: ExportTraceServiceRequest,
    sequence_id_bulk_issuer: Callable[[Sequence[tuple[str, str]]], Awaitable[Sequence[int]]],
) -> list[Span]:
    """Reads the spans of an OTLP request, each of the rollout and attempt that its attributes name, or else
    those of its resource. Spans that name none are left out with a warning.

    Stores read what is sent to them by themselves; this is for servers of one's own. What no attribute of a
    `Span` can be is its JSON text here, and bytes are hexadecimal digits.

    Args:
        request: The request.
        sequence_id_bulk_issuer: Issues sequence ids for pairs of rollout and attempt, like a store's
            `get_many_span_sequence_ids`; called once for all spans that come without one, if there are any.
    """
    spans: list[Span] = []
    without: list[Span] = []
    for group in request.resource_spans:
        about = _attributes(group.resource.attributes)
        resource = Resource(about, group.schema_url)
        for scope in group.scope_spans:
            for sent in scope.spans:
                own = _attributes(sent.attributes)
                names = {**about, **own}
                if _ROLLOUT not in names or _ATTEMPT not in names:
                    logger.warning("A span %r names no rollout and attempt, and is left out.", sent.name)
                    continue
                sequence_id = _sequence_id(names.get(_SEQUENCE))
                span = Span.from_opentelemetry(
                    _readable(sent, own, resource),
                    str(names[_ROLLOUT]),
                    str(names[_ATTEMPT]),
                    sequence_id or 0,
                )
                spans.append(span)
                if sequence_id is None:
                    without.append(span)
    if without:
        issued = await sequence_id_bulk_issuer([(span.rollout_id, span.attempt_id) for span in without])
        for span, sequence_id in zip(without, issued, strict=True):
            span.sequence_id = sequence_id
    return spans


async def handle_otlp_export(
    request: Request,
    request_message_cls: type[T_request],
    response_message_cls: type[Message],
    message_callback: Callable[[T_request], Awaitable[None]] | None,
    signal_name: str,
) -> Response:
    """Answers an OTLP request over HTTP, in a route of a Starlette or FastAPI server of one's own; a store's
    server takes OTLP by itself. Bodies are protobuf, as they are or with gzip.

    Args:
        request: What was sent.
        request_message_cls: What it is, such as `ExportTraceServiceRequest`.
        response_message_cls: What is answered, empty, such as `ExportTraceServiceResponse`.
        message_callback: Takes the request, once read; what it raises is raised.
        signal_name: What messages call it: `traces`, `metrics`, `logs`.

    Returns:
        200; or 400 for a body that can't be read, 413 for one above 256 MiB and 415 for another encoding,
        with a `google.rpc.Status` that says why.

    Raises:
        ImportError: without the package `starlette`.
    """
    try:
        from starlette.responses import Response
    except ImportError as error:
        raise ImportError(
            "answering OTLP requests needs the package starlette: pip install starlette"
        ) from error
    from google.protobuf.message import DecodeError
    from google.rpc.status_pb2 import Status as RpcStatus

    def answer(status_code: int, message: Message) -> Response:
        body, headers = message.SerializeToString(), {}
        if body and _takes_gzip(request.headers.get("accept-encoding", "")):
            body, headers = gzip.compress(body), {"content-encoding": "gzip"}
        return Response(body, status_code, headers, PROTOBUF_CT)

    def refuse(status_code: int, text: str) -> Response:
        return answer(status_code, RpcStatus(message=text))

    too_large = f"The payload has more than {_BODY_LIMIT} bytes: export fewer {signal_name} at once"
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != PROTOBUF_CT:
        return refuse(400, f"Unsupported Content-Type '{content_type}', expected '{PROTOBUF_CT}'")
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip"):
        return refuse(415, f"Unsupported Content-Encoding '{encoding}', expected one of identity, gzip")
    sent = bytearray()
    async for chunk in request.stream():
        sent += chunk
        if len(sent) > _BODY_LIMIT:
            return refuse(413, too_large)
    body = bytes(sent)
    if encoding == "gzip":
        try:
            # One more tells that there are too many.
            body = gzip.GzipFile(fileobj=io.BytesIO(body)).read(_BODY_LIMIT + 1)
        except (EOFError, OSError, zlib.error) as error:
            return refuse(400, f"Unable to decompress the gzip payload: {error}")
    if len(body) > _BODY_LIMIT:
        return refuse(413, too_large)
    try:
        message = request_message_cls.FromString(body)
    except DecodeError as error:
        return refuse(400, f"Unable to parse OTLP {signal_name} payload: {error}")
    if message_callback is not None:
        await message_callback(message)
    return answer(200, response_message_cls())


def _takes_gzip(accepted: str) -> bool:
    """Whether an Accept-Encoding lists gzip, and not with a weight of nothing."""
    for item in accepted.lower().split(","):
        name, _, weight = item.partition(";")
        if name.strip() == "gzip":
            return not re.fullmatch(r"q=0(\.0*)?", weight.strip())
    return False


def _sequence_id(value: Any) -> int | None:
    """The sequence id that an attribute gives, or None if one has to be issued."""
    if value is None:
        return None
    try:
        sequence_id = int(value)
    except ValueError:
        sequence_id = -1
    if sequence_id < 0:
        logger.warning("%r is no sequence id; another one is issued.", value)
        return None
    return sequence_id


def _readable(sent: Any, attributes: Mapping[str, Any], resource: Resource) -> ReadableSpan:
    """A span of a request as OpenTelemetry's SDK has it."""
    context = _context(sent.trace_id, sent.span_id)
    code = StatusCode(sent.status.code) if sent.status.code in (1, 2) else StatusCode.UNSET
    return ReadableSpan(
        name=sent.name,
        context=context,
        parent=_context(sent.trace_id, sent.parent_span_id) if sent.parent_span_id else None,
        resource=resource,
        attributes=attributes,
        events=[
            SdkEvent(event.name, _attributes(event.attributes), event.time_unix_nano) for event in sent.events
        ],
        links=[
            Link(_context(link.trace_id, link.span_id), _attributes(link.attributes)) for link in sent.links
        ],
        status=Status(code, (sent.status.message or None) if code is StatusCode.ERROR else None),
        start_time=sent.start_time_unix_nano,
        end_time=sent.end_time_unix_nano,
    )


def _context(trace_id: bytes, span_id: bytes) -> SpanContext:
    return SpanContext(int.from_bytes(trace_id, "big"), int.from_bytes(span_id, "big"), is_remote=False)


def _attributes(pairs: Iterable[Any]) -> dict[str, Any]:
    return sanitize_attributes({pair.key: _value(pair.value) for pair in pairs})


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return {pair.key: _value(pair.value) for pair in value.kvlist_value.values}
    if kind == "bytes_value":
        return value.bytes_value.hex()
    return getattr(value, kind)
