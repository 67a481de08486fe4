"""A tracer that only computes spans and keeps none of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from agentlightning.tracer.base import Tracer
from agentlightning.types import SpanCoreFields, TraceStatus
from agentlightning.utils.otel import format_exception_attributes

if TYPE_CHECKING:
    from agentlightning.types import Attributes, StatusCode


class DummySpanRecordingContext:
    """Collects what is recorded of one operation, in memory."""

    def __init__(
        self, name: str, attributes: Attributes | None = None, start_time: float | None = None
    ) -> None:
        self.name = name
        self.attributes: Attributes = dict(attributes or {})
        self.start_time = time.time() if start_time is None else start_time
        self.end_time: float | None = None
        self.status = TraceStatus(status_code="OK")

    def record_exception(self, exception: BaseException) -> None:
        """Keeps the exception's type, message and stack, and makes the status ERROR."""
        self.record_attributes(format_exception_attributes(exception))
        self.record_status("ERROR", str(exception))

    def record_attributes(self, attributes: Attributes) -> None:
        """Adds attributes, overwriting those of the same name."""
        self.attributes.update(attributes)

    def record_status(self, status_code: StatusCode, description: str | None = None) -> None:
        """Replaces the status."""
        self.status = TraceStatus(status_code=status_code, description=description)

    def finalize(self, end_time: float | None = None) -> None:
        """Ends the operation, now by default."""
        self.end_time = time.time() if end_time is None else end_time

    def get_recorded_span(self) -> SpanCoreFields:
        """The operation as a span.

        Raises:
            ValueError: before `finalize`.
        """
        if self.end_time is None:
            raise ValueError("The span has not ended yet; call finalize() first.")
        return SpanCoreFields(
            name=self.name,
            status=self.status,
            attributes=self.attributes,
            start_time=self.start_time,
            end_time=self.end_time,
        )


class DummyTracer(Tracer):
    """Makes spans for their value alone: nothing reaches a store, and there is no trace context."""

    def create_span(
        self,
        name: str,
        attributes: Attributes | None = None,
        timestamp: float | None = None,
        status: TraceStatus | None = None,
    ) -> SpanCoreFields:
        """The span, ended where it starts; status OK unless given."""
        moment = time.time() if timestamp is None else timestamp
        return SpanCoreFields(
            name=name,
            status=status or TraceStatus(status_code="OK"),
            attributes=dict(attributes or {}),
            start_time=moment,
            end_time=moment,
        )

    @contextmanager
    def operation_context(
        self,
        name: str,
        attributes: Attributes | None = None,
        start_time: float | None = None,
        end_time: float | None = None,
    ) -> Iterator[DummySpanRecordingContext]:
        """Records the block; an `Exception` makes the status ERROR and goes on its way."""
        recording = DummySpanRecordingContext(name, attributes, start_time)
        try:
            yield recording
        except Exception as exc:
            recording.record_exception(exc)
            raise
        finally:
            recording.finalize(end_time)
