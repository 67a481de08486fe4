"""What a machine is and how busy it is, as a heartbeat carries it."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import time
from typing import Any

_GB = 1024**3
_MB = 1024**2


def system_snapshot(include_gpu: bool = False) -> dict[str, Any]:
    """Figures of this machine. Those that need `psutil` are left out where it is not installed.

    Args:
        include_gpu: Whether to ask `nvidia-smi`, too; without one the list of GPUs is empty.
    """
    disk = shutil.disk_usage("/")
    snapshot: dict[str, Any] = {
        "timestamp": time.time(),
        "host": socket.gethostname(),
        "os": f"{platform.system()} {platform.release()}",
        "cpu_name": platform.processor() or platform.machine(),
        "cpu_threads": os.cpu_count(),
        "disk_used_gb": round(disk.used / _GB, 2),
        "disk_total_gb": round(disk.total / _GB, 2),
        "disk_pct": round(100 * disk.used / disk.total, 1) if disk.total else 0.0,
    }
    snapshot.update(_psutil_figures())
    if include_gpu:
        snapshot["gpus"] = _gpus()
    return snapshot


def _psutil_figures() -> dict[str, Any]:
    try:
        import psutil  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        return {}
    memory, network = psutil.virtual_memory(), psutil.net_io_counters()
    return {
        "cpu_cores": psutil.cpu_count(logical=False),
        "cpu_usage_pct": psutil.cpu_percent(),
        "mem_used_gb": round(memory.used / _GB, 2),
        "mem_total_gb": round(memory.total / _GB, 2),
        "mem_pct": memory.percent,
        "bytes_sent_mb": round(network.bytes_sent / _MB, 2),
        "bytes_recv_mb": round(network.bytes_recv / _MB, 2),
    }


def _gpus() -> list[dict[str, Any]]:
    query = "name,utilization.gpu,memory.used,memory.total,temperature.gpu"
    try:
        output = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"],
            capture_output=True,
            check=True,
            text=True,
            timeout=5,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    gpus = []
    for line in output.splitlines():
        name, utilization, used, total, temperature = (field.strip() for field in line.split(","))
        gpus.append(
            {
                "gpu": name,
                "util_pct": _number(utilization),
                "mem_used_mb": _number(used),
                "mem_total_mb": _number(total),
                "temp_c": _number(temperature),
            }
        )
    return gpus


def _number(text: str) -> float | None:
    """A figure of `nvidia-smi`, which says `[N/A]` for what it does not know."""
    try:
        return float(text)
    except ValueError:
        return None
