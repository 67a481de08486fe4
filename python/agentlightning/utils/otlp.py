"""An OTLP exporter that says which rollout its spans belong to.

Needs the package `opentelemetry-exporter-otlp-proto-http`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult

from agentlightning.semconv import LightningResourceAttributes

try:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
except ImportError as error:
    raise ImportError("exporting spans needs the package opentelemetry-exporter-otlp-proto-http") from error

__all__ = ["LightningStoreOTLPExporter"]


class LightningStoreOTLPExporter(OTLPSpanExporter):
    """Exports spans to a store, under a rollout and an attempt, once `enable_store_otlp` has said which.

    Before that, spans go nowhere; a subclass whose `should_bypass` is False exports them where an
    `OTLPSpanExporter` would.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._default_endpoint = self._endpoint
        self._rollout_id: str | None = None
        self._attempt_id: str | None = None

    @property
    def endpoint(self) -> str:
        """Where spans go."""
        return self._endpoint

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
        self._endpoint = endpoint
        self._rollout_id = rollout_id
        self._attempt_id = attempt_id

    def disable_store_otlp(self) -> None:
        """Undoes `enable_store_otlp`."""
        self._endpoint = self._default_endpoint
        self._rollout_id = None
        self._attempt_id = None

    def should_bypass(self) -> bool:
        """Whether spans go nowhere while it has not been said to which rollout they belong."""
        return True

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Exports spans. They are told apart by their resources, so that of each span is left as it is, and a
        copy is exported."""
        if self._rollout_id is None or self._attempt_id is None:
            return SpanExportResult.SUCCESS if self.should_bypass() else super().export(spans)
        ids = Resource(
            {
                LightningResourceAttributes.ROLLOUT_ID.value: self._rollout_id,
                LightningResourceAttributes.ATTEMPT_ID.value: self._attempt_id,
            }
        )
        return super().export([_under(span, ids) for span in spans])


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
