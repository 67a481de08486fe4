"""Measures our adapters against those of agentlightning 0.3, on the same spans: `make bench-traces`."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
GOALS = {"small": 20.0, "large": 40.0, "stored": 40.0}
MERGE_GOAL = 200e6


def measured(python: str, side: str, *options: str) -> dict[str, Any]:
    """The figures of one side."""
    command = [python, str(HERE / "measure.py"), side, *options]
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
    )
    figures: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def main() -> None:
    """Measures, prints a table and writes it down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ours", required=True, help="Python with our package")
    parser.add_argument("--peer", required=True, help="Python with agentlightning 0.3")
    parser.add_argument("--merge", required=True, help="program that measures the merge")
    parser.add_argument("--out", type=Path, help="folder for traces.json and traces.md")
    parser.add_argument("--quick", action="store_true", help="a smoke run")
    arguments = parser.parse_args()
    options = ("--rollouts", "50", "--enough", "0.2", "--runs", "3") if arguments.quick else ()
    peer = measured(arguments.peer, "peer", *options)
    ours = measured(arguments.ours, "ours", *options)
    merge = json.loads(
        subprocess.run([arguments.merge], stdout=subprocess.PIPE, text=True, check=True).stdout
    )

    peer["unchanged"] = peer["stored"]
    for name in (*GOALS, "unchanged"):
        if peer[name]["found"] != ours[name]["found"]:
            raise SystemExit(f"{name}: the two sides found different data, so their times say nothing")

    rows: list[tuple[str, str, str, float, float | None]] = []
    for name, label in (("small", "a rollout of 4 calls"), ("large", "a rollout of 200 calls, 10 agents")):
        theirs, own = peer[name]["median_s"], ours[name]["median_s"]
        rows.append((label, f"{theirs * 1e3:.2f} ms", f"{own * 1e3:.3f} ms", theirs / own, GOALS[name]))
    count = ours["stored"]["rollouts"]
    for name, label in (
        ("stored", f"{count} rollouts out of the store, `training_arrays`"),
        ("unchanged", f"{count} rollouts out of the store, `query_spans` and `adapt`"),
    ):
        theirs, own = peer[name]["seconds"], ours[name]["seconds"]
        rows.append((label, f"{theirs:.2f} s", f"{own:.3f} s", theirs / own, GOALS.get(name)))
    lines = [
        "# Spans to training data",
        "",
        f"`make bench-traces` on {platform.machine()}, {os.cpu_count()} processors; "
        f"agentlightning {peer['version']} under Python {peer['python']}, ours {ours['python']}. Medians. "
        "The first two rows begin and end with Python's objects; in the others each side fetches from its "
        "own store, 0.3's in memory, ours in a SQLite file. 0.3 has one way, which ours has too, and besides "
        "one call for all rollouts, `training_arrays`, whose spans never become objects of Python. All ways "
        "have to find the same tokens and rewards.",
        "",
        "| | 0.3 | ours | faster | goal |",
        "|---|---:|---:|---:|---:|",
        *(
            f"| {label} | {a} | {b} | {ratio:.0f} x | {'' if goal is None else f'{goal:.0f} x'} |"
            for label, a, b, ratio, goal in rows
        ),
        "",
        f"Merge by prefix, on one core: {merge['tokens_per_s'] / 1e6:.0f} M input tokens/s (goal: "
        f"{MERGE_GOAL / 1e6:.0f} M).",
        "",
    ]
    text = "\n".join(lines)
    print(text)
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        figures = {"peer": peer, "ours": ours, "merge": merge}
        (arguments.out / "traces.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        (arguments.out / "traces.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
