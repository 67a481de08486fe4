"""Counters and histograms, written to the log, given to Prometheus, or both.

The store's server counts by itself, whatever is passed to it as a tracker, and shows its figures at
`/v1/prometheus/`. This is for figures of one's own.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

__all__ = [
    "LATENCY_BUCKETS",
    "ConsoleMetricsBackend",
    "MetricsBackend",
    "MultiMetricsBackend",
    "PrometheusMetricsBackend",
    "get_prometheus_registry",
    "setup_multiprocess_prometheus",
    "shutdown_metrics",
]

logger = logging.getLogger(__name__)

_MULTIPROC_DIR = "PROMETHEUS_MULTIPROC_DIR"

LATENCY_BUCKETS: tuple[float, ...] = (
    *(1e-6, 2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4),
    *(0.001, 0.002, 0.003, 0.005, 0.007, 0.01, 0.015, 0.02, 0.03, 0.05, 0.07),
    *(0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 2.0, 3.0, 5.0, 7.0),
    *(10.0, 12.0, 15.0, 20.0, 25.0, 30.0, 40.0, 50.0, 60.0, 90.0, 120.0, 180.0, 240.0, 300.0),
)
"""Buckets for latencies, in seconds, from a microsecond to five minutes."""


class _Metric:
    """What is known of a counter or histogram."""

    def __init__(
        self,
        kind: Literal["Counter", "Histogram"],
        name: str,
        label_names: Sequence[str] | None,
        group_level: int | None,
        buckets: Sequence[float] | None = None,
    ) -> None:
        self.kind = kind
        self.name = name
        self.label_names = tuple(label_names or ())
        self.group_level = group_level
        self.buckets = None if buckets is None else tuple(buckets)

    def labels_of(self, labels: Mapping[str, str] | None) -> tuple[str, ...]:
        """The labels' values in the order of their names; `ValueError` for one that is missing."""
        given = labels or {}
        for name in self.label_names:
            if name not in given:
                raise ValueError(f"Label '{name}' is required for {self.kind} '{self.name}'.")
        return tuple(str(given[name]) for name in self.label_names)


class MetricsBackend:
    """Where figures go. Names are registered first, with the labels that each figure comes with."""

    def __init__(self) -> None:
        self._metrics: dict[str, _Metric] = {}
        self._lock = threading.Lock()

    def has_prometheus(self) -> bool:
        """Whether the figures can be read by Prometheus."""
        return False

    def register_counter(
        self, name: str, label_names: Sequence[str] | None = None, group_level: int | None = None
    ) -> None:
        """Registers something that is counted.

        Args:
            name: Its name, with dots.
            label_names: The labels that every figure comes with.
            group_level: By how many of the labels, from the first on, the log tells figures apart.

        Raises:
            ValueError: if there is something else of this name already.
        """
        self._register(_Metric("Counter", name, label_names, group_level))

    def register_histogram(
        self,
        name: str,
        label_names: Sequence[str] | None = None,
        buckets: Sequence[float] | None = None,
        group_level: int | None = None,
    ) -> None:
        """Registers something that is measured. `buckets` are upper bounds, for Prometheus; see
        `register_counter` for the rest."""
        self._register(_Metric("Histogram", name, label_names, group_level, buckets))

    def _register(self, metric: _Metric) -> None:
        with self._lock:
            known = self._metrics.get(metric.name)
            if known is None:
                self._add(metric)
                self._metrics[metric.name] = metric
                return
        if vars(known) != vars(metric):
            raise ValueError(
                f"{known.kind} '{known.name}' is registered already, as another kind or with other labels, "
                "buckets or group level"
            )

    def _add(self, metric: _Metric) -> None:
        """Makes room for a new metric."""

    def _find(self, kind: str, name: str) -> _Metric:
        metric = self._metrics.get(name)
        if metric is None or metric.kind != kind:
            raise ValueError(f"{kind} '{name}' is not registered.")
        return metric

    async def inc_counter(
        self, name: str, amount: float = 1.0, labels: Mapping[str, str] | None = None
    ) -> None:
        """Counts. Labels that were not registered are left out.

        Raises:
            ValueError: for an unknown name, or without a registered label.
        """
        metric = self._find("Counter", name)
        self._record(metric, float(amount), metric.labels_of(labels))

    async def observe_histogram(
        self, name: str, value: float, labels: Mapping[str, str] | None = None
    ) -> None:
        """Takes a measurement, a number of seconds as a rule; errors are those of `inc_counter`."""
        metric = self._find("Histogram", name)
        self._record(metric, float(value), metric.labels_of(labels))

    def _record(self, metric: _Metric, value: float, labels: tuple[str, ...]) -> None:
        raise NotImplementedError()


class ConsoleMetricsBackend(MetricsBackend):
    """Writes rates and percentiles of the last while to the log.

    At most once every `log_interval_seconds`, whenever something is recorded, one line tells all figures:
    counters as `name{label=value}=per second`, histograms as `name{label=value}=P50,P95,P99`.
    """

    def __init__(
        self,
        window_seconds: float | None = 60.0,
        log_interval_seconds: float = 10.0,
        group_level: int | None = None,
    ) -> None:
        """Makes a backend.

        Args:
            window_seconds: How far back a line looks; None for everything.
            log_interval_seconds: How often a line is written at most.
            group_level: By how many labels figures are told apart, whatever they were registered with.
        """
        super().__init__()
        self.window_seconds = window_seconds
        self.log_interval_seconds = log_interval_seconds
        self.group_level = group_level
        # By name and labels: time and value of each event, the oldest first.
        self._events: dict[tuple[str, tuple[tuple[str, str], ...]], deque[tuple[float, float]]] = {}
        self._last_line = time.monotonic()

    def _record(self, metric: _Metric, value: float, labels: tuple[str, ...]) -> None:
        level = self.group_level if self.group_level is not None else metric.group_level
        shown = list(zip(metric.label_names, labels, strict=True))[: max(level or 0, 0)]
        now = time.monotonic()
        with self._lock:
            events = self._events.setdefault((metric.name, tuple(shown)), deque())
            events.append((now, value))
            self._forget(events, now)
            if now - self._last_line < self.log_interval_seconds:
                return
            self._last_line = now
            line = self._line(now)
        logger.info("%s", line)

    def _forget(self, events: deque[tuple[float, float]], now: float) -> None:
        if self.window_seconds is not None:
            while events and now - events[0][0] > self.window_seconds:
                events.popleft()

    def _line(self, now: float) -> str:
        entries = []
        for (name, labels), events in list(self._events.items()):
            self._forget(events, now)
            if not events:
                del self._events[name, labels]
                continue
            values = [value for _, value in events]
            where = "{" + ",".join(f"{key}={value}" for key, value in labels) + "}" if labels else ""
            if self._metrics[name].kind == "Counter":
                # A window that has only just begun would make the rate look larger than it is.
                seconds = max(now - events[0][0], self.log_interval_seconds) or 1.0
                entries.append(f"{name}{where}={sum(values) / seconds:.2f}/s")
            else:
                values.sort()
                marks = ",".join(_human(_percentile(values, share)) for share in (0.5, 0.95, 0.99))
                entries.append(f"{name}{where}={marks}")
        return "  ".join(sorted(entries))


def _percentile(ordered: Sequence[float], share: float) -> float:
    """The value that this share of values lies below, by linear interpolation."""
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def _human(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if abs(seconds) >= size:
            return f"{seconds / size:.2f}{unit}"
    return f"{seconds / 1e-9:.2f}ns"


class PrometheusMetricsBackend(MetricsBackend):
    """Keeps figures for Prometheus, by names with underscores for dots. Needs the package
    `prometheus-client`."""

    def __init__(self) -> None:
        """Makes a backend.

        Raises:
            ImportError: without `prometheus-client`.
        """
        super().__init__()
        _prometheus()
        self._collectors: dict[str, Any] = {}

    def has_prometheus(self) -> bool:
        """Whether the figures can be read by Prometheus."""
        return True

    def _add(self, metric: _Metric) -> None:
        prometheus = _prometheus()
        name = metric.name.replace(".", "_")
        for other in self._metrics:
            if other.replace(".", "_") == name:
                raise ValueError(f"'{metric.name}' and '{other}' are both '{name}' for Prometheus.")
        help_text = f"{metric.kind} {metric.name}"
        if metric.kind == "Counter":
            self._collectors[metric.name] = prometheus.Counter(name, help_text, metric.label_names)
        else:
            options = {} if metric.buckets is None else {"buckets": metric.buckets}
            self._collectors[metric.name] = prometheus.Histogram(
                name, help_text, metric.label_names, **options
            )

    def _record(self, metric: _Metric, value: float, labels: tuple[str, ...]) -> None:
        collector = self._collectors[metric.name]
        if labels:
            collector = collector.labels(*labels)
        if metric.kind == "Counter":
            collector.inc(value)
        else:
            collector.observe(value)


class MultiMetricsBackend(MetricsBackend):
    """Hands every figure on to several backends."""

    def __init__(self, backends: Iterable[MetricsBackend]) -> None:
        """Makes a backend of others.

        Raises:
            ValueError: without any.
        """
        super().__init__()
        self.backends = list(backends)
        if not self.backends:
            raise ValueError("MultiMetricsBackend needs at least one backend.")

    def has_prometheus(self) -> bool:
        """Whether any of them has."""
        return any(backend.has_prometheus() for backend in self.backends)

    def _register(self, metric: _Metric) -> None:
        for backend in self.backends:
            if metric.kind == "Counter":
                backend.register_counter(metric.name, metric.label_names, metric.group_level)
            else:
                backend.register_histogram(
                    metric.name, metric.label_names, metric.buckets, metric.group_level
                )

    async def inc_counter(
        self, name: str, amount: float = 1.0, labels: Mapping[str, str] | None = None
    ) -> None:
        """See `MetricsBackend`."""
        for backend in self.backends:
            await backend.inc_counter(name, amount, labels)

    async def observe_histogram(
        self, name: str, value: float, labels: Mapping[str, str] | None = None
    ) -> None:
        """See `MetricsBackend`."""
        for backend in self.backends:
            await backend.observe_histogram(name, value, labels)


# Prometheus over several processes, which share a folder of files.

_folder: tempfile.TemporaryDirectory[str] | None = None


def setup_multiprocess_prometheus() -> str:
    """Has the processes started from here on share their figures, in the folder that PROMETHEUS_MULTIPROC_DIR
    names, or in a new one, which goes with this process. Returns the folder.

    Call it before anything imports `prometheus_client`, which reads the variable once.
    """
    global _folder
    if (folder := os.environ.get(_MULTIPROC_DIR)) is not None:
        logger.warning("%s is set already: %s", _MULTIPROC_DIR, folder)
        return folder
    _folder = tempfile.TemporaryDirectory(prefix="agl-prometheus-")
    os.environ[_MULTIPROC_DIR] = _folder.name
    return _folder.name


def get_prometheus_registry() -> CollectorRegistry:
    """The figures of all processes where they share a folder, else those of this one."""
    prometheus = _prometheus()
    if _MULTIPROC_DIR not in os.environ:
        registry: CollectorRegistry = prometheus.REGISTRY
        return registry
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = prometheus.CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call, unused-ignore]
    return registry


def shutdown_metrics(server: Any = None, worker: Any = None) -> None:
    """Notes that a process has ended, so that its gauges go: the worker given, or this one. Serves as
    gunicorn's `child_exit` hook."""
    if _MULTIPROC_DIR not in os.environ:
        return
    _prometheus()
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(  # type: ignore[no-untyped-call, unused-ignore]
        getattr(worker, "pid", None) or os.getpid()
    )


def _prometheus() -> Any:
    try:
        import prometheus_client
    except ImportError:
        raise ImportError("metrics for Prometheus need the package prometheus-client") from None
    return prometheus_client
