"""Measures the agent's side beside 0.3's, on the machine at hand: `make bench-agent`.

Both sides run the same code (side.py), each measurement in a process of its own, in turns and round by round,
so that whatever else the machine does hits both. Figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- tables: written by make bench-agent -->", "<!-- end of tables -->"
SIDES = ("peer", "ours")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def side(python: Path, name: str, *arguments: Any) -> dict[str, Any]:
    """One measurement of one side."""
    environment = {**os.environ, "BENCH_PORT": str(free_port()), "PYTHONWARNINGS": "ignore"}
    command = [str(python), str(HERE / "side.py"), name, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    result: dict[str, Any] = json.loads(lines[-1])
    return result


@contextmanager
def served(python: Path, which: str) -> Iterator[str]:
    """The store server of one side, in memory."""
    port = free_port()
    agl = python.parent / "agl"
    options = ["--host", "127.0.0.1", "--port", str(port)]
    options += ["--backend", "memory", "--log-level", "error" if which == "ours" else "ERROR"]
    server = subprocess.Popen(
        [str(agl), "store", *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                with urllib.request.urlopen(f"{address}/v1/agl/health", timeout=1):
                    break
            except OSError:
                time.sleep(0.1)
        else:
            sys.exit(f"the store server of {which} did not start")
        yield address
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()


class Bench:
    """The rounds, and what they have brought."""

    def __init__(self, pythons: dict[str, Path], rounds: int, quick: bool) -> None:
        self.pythons = pythons
        self.rounds = rounds
        self.quick = quick
        self.figures: dict[str, dict[str, list[float]]] = {}

    def note(self, which: str, name: str, result: dict[str, Any]) -> None:
        """Keeps the figures of one measurement."""
        for key, value in result.items():
            self.figures.setdefault(f"{name}.{key}", {}).setdefault(which, []).append(value)
        shown = ", ".join(f"{key} {value:.4g}" for key, value in result.items())
        print(f"── {name}, {which}: {shown}", file=sys.stderr, flush=True)

    def run(self) -> None:
        """Measures everything, both sides in turns."""
        spans, latencies = (100, 20) if self.quick else (2000, 200)
        runners = (1, 4) if self.quick else (1, 4, 16)
        rollouts = {"peer": 60, "ours": 200} if self.quick else {"peer": 400, "ours": 4000}
        for _ in range(self.rounds):
            for what in ("package", "names"):
                for which in SIDES:
                    self.note(which, f"import.{what}", side(self.pythons[which], "import", what))
            for which in SIDES:
                with served(self.pythons[which], which) as address:
                    self.note(which, "span", side(self.pythons[which], "spans", address, spans))
            for which in SIDES:
                with served(self.pythons[which], which) as address:
                    self.note(which, "latency", side(self.pythons[which], "latency", address, latencies))
            for number in runners:
                for which in SIDES:
                    result = side(self.pythons[which], "rollouts", number, rollouts[which])
                    self.note(which, f"rollouts.{number}", result)

    def medians(self) -> dict[str, dict[str, float]]:
        """The figures, each the median of its rounds."""
        return {
            name: {which: median(values) for which, values in sides.items()}
            for name, sides in self.figures.items()
        }


ROWS = [
    ("import.package.cpu_seconds", "`import agentlightning`", "s of processor", "less"),
    ("import.names.cpu_seconds", "the same, and every name that a run needs", "s of processor", "less"),
    ("span.p50_us", "what a span costs the agent, p50", "µs", "less"),
    ("span.p99_us", "what a span costs the agent, p99", "µs", "less"),
    ("latency.p50_us", "from the enqueue to the agent's start, runner idle, p50", "µs", "less"),
    ("latency.p99_us", "from the enqueue to the agent's start, runner idle, p99", "µs", "less"),
    ("rollouts.{n}.per_second", "empty rollouts a second, {n} runner{s}", "", "more"),
    ("rollouts.{n}.rss_mib", "a runner's resident memory, {n} runner{s}", "MiB", "less"),
    ("rollouts.{n}.private_mib", "of that its own, {n} runner{s}", "MiB", "less"),
]


def short(value: float) -> str:
    """A figure with three digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def table(medians: dict[str, dict[str, float]]) -> str:
    """The figures side by side."""
    lines = ["| | 0.3 | here | times better |", "|---|---:|---:|---:|"]
    numbers = sorted({int(match[1]) for name in medians if (match := re.match(r"rollouts\.(\d+)\.", name))})
    for key, text, unit, better in ROWS:
        for number in numbers if "{n}" in key else [0]:
            found = medians.get(key.format(n=number))
            if found is None:
                continue
            peer, ours = found["peer"], found["ours"]
            ratio = peer / ours if better == "less" else ours / peer
            name = text.format(n=number, s="" if number == 1 else "s")
            suffix = f" {unit}" if unit else ""
            lines.append(f"| {name} | {short(peer)}{suffix} | {short(ours)}{suffix} | {short(ratio)} |")
    return "\n".join(lines)


def machine() -> str:
    """What it was measured on."""
    names = re.findall(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    return (
        f"{os.cpu_count()} cores of {names[0] if names else platform.machine()}, Linux {platform.release()}"
    )


def main() -> None:
    """Measures, prints, and with --out writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ours", type=Path, required=True, help="our Python")
    parser.add_argument("--peer", type=Path, required=True, help="0.3's Python")
    parser.add_argument("--out", type=Path, help="folder of agent.json and agent.md")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="look only whether everything works")
    arguments = parser.parse_args()
    # Not resolved: a virtual environment is found by its link.
    pythons = {"ours": arguments.ours.absolute(), "peer": arguments.peer.absolute()}
    bench = Bench(pythons, 1 if arguments.quick else arguments.rounds, arguments.quick)
    load = os.getloadavg()[0]
    bench.run()
    medians = bench.medians()
    note = f"{machine()}; Python {platform.python_version()}; medians of {bench.rounds} rounds"
    note += f"; load average before: {load:.1f}."
    text = f"{note}\n\n{table(medians)}"
    print(text)
    if arguments.out is None:
        return
    figures = {"machine": machine(), "load": load, "rounds": bench.figures, "medians": medians}
    (arguments.out / "agent.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    page = arguments.out / "agent.md"
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
