"""Exporters that send something only while `enable_agentops_service` says so, or a store has been named.

Needs the package `opentelemetry-exporter-otlp-proto-http`.
"""

from __future__ import annotations

from typing import Any

# First, since it says which package is missing.
from agentlightning.utils.otlp import LightningStoreOTLPExporter

# isort: split
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics.export import MetricExportResult, MetricsData

from agentlightning.instrumentation import agentops

__all__ = ["BypassableOTLPMetricExporter", "BypassableOTLPSpanExporter"]


class BypassableOTLPSpanExporter(LightningStoreOTLPExporter):
    """Exports spans to a store that has been named, or else where an `OTLPSpanExporter` does, while AgentOps'
    service is enabled."""

    def should_bypass(self) -> bool:
        """Whether spans go nowhere while no store has been named."""
        return not agentops.is_service_enabled()


class BypassableOTLPMetricExporter(OTLPMetricExporter):
    """Exports metrics while AgentOps' service is enabled, and else says that it has."""

    def export(
        self, metrics_data: MetricsData, timeout_millis: float | None = 10_000, **kwargs: Any
    ) -> MetricExportResult:
        """Exports metrics, or says that it has."""
        if not agentops.is_service_enabled():
            return MetricExportResult.SUCCESS
        return super().export(metrics_data, timeout_millis, **kwargs)
