"""What a machine is and how busy it is, as a heartbeat carries it."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

_GB = 1024**3
_MB = 1024**2


def system_snapshot(include_gpu: bool = False) -> dict[str, Any]:
    """Figures of this machine. Where there is no `/proc`, those that come from it are left out.

    Args:
        include_gpu: Whether to ask `nvidia-smi`, too; without one the list of GPUs is empty.
    """
    disk = shutil.disk_usage("/")
    snapshot: dict[str, Any] = {
        "timestamp": time.time(),
        "host": socket.gethostname(),
        "os": f"{platform.system()} {platform.release()}",
        "cpu_name": platform.processor() or platform.machine(),
        "cpu_cores": os.cpu_count(),
        "cpu_threads": os.cpu_count(),
        "disk_used_gb": round(disk.used / _GB, 2),
        "disk_total_gb": round(disk.total / _GB, 2),
        "disk_pct": round(100 * disk.used / disk.total, 1) if disk.total else 0.0,
    }
    for figures in (_processor, _processor_use, _memory, _network):
        try:
            snapshot.update(figures())
        except (OSError, KeyError, ValueError):
            continue
    if include_gpu:
        snapshot["gpus"] = _gpus()
    return snapshot


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()


def _processor() -> dict[str, Any]:
    fields = [line.split(":", 1) for line in _lines("/proc/cpuinfo") if ":" in line]
    pairs = [(name.strip(), value.strip()) for name, value in fields]
    figures: dict[str, Any] = {}
    if names := [value for name, value in pairs if name == "model name"]:
        figures["cpu_name"] = names[0]
    packages = [value for name, value in pairs if name == "physical id"]
    cores = [value for name, value in pairs if name == "core id"]
    if cores and len(packages) == len(cores):
        figures["cpu_cores"] = len(set(zip(packages, cores, strict=True)))
    return figures


_last_times: tuple[int, int] | None = None


def _processor_use() -> dict[str, Any]:
    """How busy the processors have been since the last snapshot; 0 in the first one."""
    global _last_times
    # user, nice, system, idle, iowait, irq, softirq, steal
    times = [int(field) for field in _lines("/proc/stat")[0].split()[1:9]]
    idle, total = times[3] + times[4], sum(times)
    before, _last_times = _last_times, (idle, total)
    if before is None or total <= before[1]:
        return {"cpu_usage_pct": 0.0}
    busy = 1 - (idle - before[0]) / (total - before[1])
    return {"cpu_usage_pct": round(100 * min(1.0, max(0.0, busy)), 1)}


def _memory() -> dict[str, Any]:
    kilobytes = {name: int(rest.split()[0]) for name, _, rest in map(_partition, _lines("/proc/meminfo"))}
    total = kilobytes["MemTotal"]
    used = total - kilobytes["MemAvailable"]
    return {
        "mem_used_gb": round(used * 1024 / _GB, 2),
        "mem_total_gb": round(total * 1024 / _GB, 2),
        "mem_pct": round(100 * used / total, 1),
    }


def _network() -> dict[str, Any]:
    counted = [rest.split() for _, _, rest in map(_partition, _lines("/proc/net/dev")[2:])]
    return {
        "bytes_sent_mb": round(sum(int(counters[8]) for counters in counted) / _MB, 2),
        "bytes_recv_mb": round(sum(int(counters[0]) for counters in counted) / _MB, 2),
    }


def _partition(line: str) -> tuple[str, str, str]:
    return line.partition(":")


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
