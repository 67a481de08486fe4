"""An OTLP exporter that says which rollout its spans belong to.

Needs the package `opentelemetry-exporter-otlp-proto-http`.
"""

from __future__ import annotations

import os
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
