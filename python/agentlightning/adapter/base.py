"""The adapter interface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

from agentlightning.types import Span

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

T_from = TypeVar("T_from")
T_to = TypeVar("T_to")


class Adapter(Generic[T_from, T_to]):
    """Turns one form of data into another; called like a function."""

    def __call__(self, source: T_from, /) -> T_to:
        """See `adapt`."""
        return self.adapt(source)

    def adapt(self, source: T_from, /) -> T_to:
        """Turns `source` into what an algorithm wants."""
        raise NotImplementedError("Adapter.adapt() is not implemented.")


class OtelTraceAdapter(Adapter[Sequence["ReadableSpan"], T_to], Generic[T_to]):
    """An adapter of OpenTelemetry's own spans."""


class TraceAdapter(Adapter[Sequence[Span], T_to], Generic[T_to]):
    """An adapter of the spans that a store holds."""
