"""Metrics of a user's own, and the command that shows them."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from agentlightning.utils.metrics import (
    LATENCY_BUCKETS,
    ConsoleMetricsBackend,
    MetricsBackend,
    MultiMetricsBackend,
    PrometheusMetricsBackend,
    get_prometheus_registry,
)

COUNT = """
import asyncio, sys
from agentlightning.utils.metrics import LATENCY_BUCKETS, PrometheusMetricsBackend

async def main():
    backend = PrometheusMetricsBackend()
    backend.register_counter("my.calls.total", ["tool"])
    backend.register_histogram("my.latency", ["tool"], LATENCY_BUCKETS)
    for _ in range(int(sys.argv[1])):
        await backend.inc_counter("my.calls.total", labels={"tool": "search", "other": "x"})
    await backend.observe_histogram("my.latency", 0.004, {"tool": "search"})
asyncio.run(main())
"""


@pytest.fixture(params=["console", "prometheus", "multi"])
def backend(request: pytest.FixtureRequest) -> MetricsBackend:
    prometheus = pytest.importorskip("prometheus_client")
    for collector in list(prometheus.REGISTRY._collector_to_names):
        if collector.__class__.__name__ in ("Counter", "Histogram"):
            prometheus.REGISTRY.unregister(collector)
    match request.param:
        case "console":
            return ConsoleMetricsBackend()
        case "prometheus":
            return PrometheusMetricsBackend()
        case _:
            return MultiMetricsBackend([ConsoleMetricsBackend(), PrometheusMetricsBackend()])


async def test_names_and_labels_are_checked(backend: MetricsBackend) -> None:
    backend.register_counter("a.total", ["x"], group_level=1)
    backend.register_counter("a.total", ["x"], group_level=1)
    with pytest.raises(ValueError, match=r"'a.total' is registered already"):
        backend.register_counter("a.total", ["y"])
    with pytest.raises(ValueError, match=r"'a.total' is registered already"):
        backend.register_histogram("a.total", ["x"])
    with pytest.raises(ValueError, match="Counter 'b' is not registered"):
        await backend.inc_counter("b")
    with pytest.raises(ValueError, match=r"Histogram 'a.total' is not registered"):
        await backend.observe_histogram("a.total", 1.0)
    with pytest.raises(ValueError, match=r"Label 'x' is required for Counter 'a.total'"):
        await backend.inc_counter("a.total", labels={"y": "1"})
    await backend.inc_counter("a.total", 2, {"x": "1", "y": "2"})


async def test_the_log_tells_rates_and_percentiles(caplog: pytest.LogCaptureFixture) -> None:
    backend = ConsoleMetricsBackend(log_interval_seconds=0)
    backend.register_counter("calls", ["path", "status"], group_level=1)
    backend.register_histogram("latency", ["path"])
    with caplog.at_level(logging.INFO, "agentlightning.utils.metrics"):
        for _ in range(4):
            await backend.inc_counter("calls", labels={"path": "/a", "status": "200"})
        for value in (1e-7, 2e-3, 1.5):
            await backend.observe_histogram("latency", value, {"path": "/a"})
    calls, latency = caplog.messages[-1].split("  ")
    assert calls.startswith("calls{path=/a}=")
    assert calls.endswith("/s")
    assert latency == "latency=2.00ms,1.35s,1.47s"


async def test_the_log_is_not_flooded(caplog: pytest.LogCaptureFixture) -> None:
    backend = ConsoleMetricsBackend(window_seconds=0.0, log_interval_seconds=3600.0, group_level=2)
    backend.register_counter("calls", ["a", "b", "c"])
    with caplog.at_level(logging.INFO, "agentlightning.utils.metrics"):
        for _ in range(100):
            await backend.inc_counter("calls", labels={"a": "1", "b": "2", "c": "3"})
    assert caplog.messages == []
    # What has left the window is gone.
    now = time.monotonic()
    assert backend._line(now + 1.0) == ""
    await backend.inc_counter("calls", 7200.0, {"a": "1", "b": "2", "c": "3"})
    assert backend._line(time.monotonic()) in ("calls{a=1,b=2}=2.00/s", "")


async def test_prometheus_sees_them() -> None:
    prometheus = pytest.importorskip("prometheus_client")
    backend = PrometheusMetricsBackend()
    backend.register_histogram("seen.latency", ["path"], buckets=(0.1, 1.0))
    await backend.observe_histogram("seen.latency", 0.5, {"path": "/a"})
    text = prometheus.generate_latest(get_prometheus_registry()).decode()
    assert "# HELP seen_latency Histogram seen.latency" in text
    assert 'seen_latency_bucket{le="1.0",path="/a"} 1.0' in text
    with pytest.raises(ValueError, match="both 'seen_latency' for Prometheus"):
        backend.register_counter("seen_latency")
    assert backend.has_prometheus()


def test_multi_needs_something_to_hand_on_to() -> None:
    with pytest.raises(ValueError, match="at least one backend"):
        MultiMetricsBackend([])
    assert not MultiMetricsBackend([ConsoleMetricsBackend()]).has_prometheus()
    assert list(LATENCY_BUCKETS) == sorted(set(LATENCY_BUCKETS))
    assert len(LATENCY_BUCKETS) == 44


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=20) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def agl(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "agentlightning.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_agl_prometheus_adds_up_what_processes_count(how: signal.Signals, tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client")
    environment = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    for count in ("2", "3"):
        subprocess.run([sys.executable, "-c", COUNT, count], check=True, env=environment, timeout=60)
    command = [sys.executable, "-m", "agentlightning.cli", "prometheus", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdout is not None
        url = server.stdout.readline().split()[-1]
        for path in (url, url + "/"):
            status, text = get(path)
            assert status == 200
            assert 'my_calls_total{tool="search"} 5.0' in text
            assert 'my_latency_bucket{le="0.005",tool="search"} 2.0' in text
        root = url.removesuffix("/v1/prometheus")
        assert json.loads(get(root + "/health")[1]) == {"status": "ok"}
        assert get(root + "/other")[0] == 404
        server.send_signal(how)
        assert server.wait(30) == 0


def test_agl_prometheus_says_what_it_needs(tmp_path: Path) -> None:
    done = agl("prometheus", env={})
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "PROMETHEUS_MULTIPROC_DIR must name" in done.stderr
    for path in ("metrics", "/"):
        done = agl("prometheus", "--metrics-path", path, env={"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)})
        assert done.returncode == 1
        assert "--metrics-path must be a path" in done.stderr


def test_agl_vllm_hands_over(tmp_path: Path) -> None:
    missing = agl("vllm", "serve", "m")
    assert missing.returncode == 1
    assert "needs the package vllm" in missing.stderr
    # vLLM itself does not install everywhere; what counts here is what it is called with.
    package = tmp_path / "vllm" / "entrypoints" / "cli"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").write_text("")
    (package / "main.py").write_text("import sys\ndef main():\n    print(sys.argv)\n    return 3\n")
    for version, code, words in (("0.11.0rc1", 3, "['vllm', 'serve', 'm']"), ("0.9.2", 1, "vllm>=0.10.2")):
        (tmp_path / "vllm" / "__init__.py").write_text(f"__version__ = {version!r}\n")
        done = agl("vllm", "serve", "m", env={"PYTHONPATH": str(tmp_path)})
        assert (done.returncode, words in done.stdout + done.stderr) == (code, True)


def test_help_lists_what_is_in_python() -> None:
    done = agl("--help")
    assert done.returncode == 0
    assert "prometheus" in done.stdout
    assert "vllm" in done.stdout
