#!/usr/bin/env python3
"""Other people's clients over our server: `make test-peer`.

Every part is a script beside this one that gets the address of a server of its own and counts what holds.
agentlightning 1.0 needs Python 3.12 or newer; where there is none its part is left out, and named.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from newer_python import newer_python

REQUIREMENTS = HERE.parent.parent / "requirements" / "controller.txt"
START, PART = 60.0, 900.0


@contextmanager
def server(agl: Path) -> Iterator[str]:
    """Our server with an SQLite file; gives its address."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        with log.open("wb") as output:
            command = [
                str(agl),
                "store",
                "--port",
                "0",
                "--path",
                str(Path(folder, "agl.db")),
                "--log-level",
                "WARNING",
            ]
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
        try:
            deadline = time.monotonic() + START
            while not (address := re.search(r"http://[\d.]+:\d+", log.read_text())):
                if process.poll() is not None or time.monotonic() > deadline:
                    sys.exit(f"the server does not serve:\n{log.read_text()}")
                time.sleep(0.05)
            yield address[0]
        finally:
            process.terminate()
            process.wait(timeout=60)
            # The first line tells where it listens; there is nothing else to warn of.
            for line in log.read_text().splitlines()[1:]:
                print(f"server: {line}", flush=True)


def runs(name: str, python: Path, script: Path, agl: Path) -> bool:
    """Runs a part; shows all it said when it failed, else its count."""
    started = time.monotonic()
    environment = os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONUNBUFFERED": "1"}
    with server(agl) as url:
        command = [str(python), str(script), url]
        # Into a file, because processes that a part leaves behind would keep a pipe open.
        with tempfile.TemporaryFile("w+", errors="replace") as output:
            try:
                status = subprocess.run(
                    command,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    timeout=PART,
                ).returncode
            except subprocess.TimeoutExpired:
                status = f"no end within {PART:.0f} s"
            output.seek(0)
            said = output.read()
    counts = [line for line in said.splitlines() if re.search(r"\b\d+ passed, \d+ failed\b", line)]
    passed = status == 0 and bool(counts)
    print("\n".join(counts) if passed else f"{said}\n{name}: FAILED ({status})", flush=True)
    print(f"── {name}: {time.monotonic() - started:.0f} s", flush=True)
    return passed


def controller_python(folder: Path) -> Path | None:
    """The Python of an environment with agentlightning 1.0, which is made if there is none."""
    python, ready = folder / "bin" / "python", folder / "ready"
    if not ready.exists():
        base = newer_python()
        if base is None:
            return None
        print(f"── agentlightning 1.0 in {folder}", flush=True)
        subprocess.run([str(base), "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", "--requirement", str(REQUIREMENTS)], check=True
        )
        ready.touch()
    return python


def main() -> None:
    """Runs every part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agl", type=Path, required=True, help="our command")
    parser.add_argument("--peer", type=Path, required=True, help="environment with agentlightning 0.3")
    parser.add_argument("--controller", type=Path, required=True, help="environment for agentlightning 1.0")
    parser.add_argument("--only", help="run only the part of this name")
    options = parser.parse_args()
    peer = options.peer.absolute() / "bin" / "python"
    parts = {
        "trainer": (lambda: peer, "agentlightning 0.3 trains over our server"),
        "lossless": (lambda: peer, "agentlightning 0.3 reads attributes of every type"),
        "verl": (lambda: Path(sys.executable), "the requests of agentlightning 1.0's verl trainer"),
        "controller": (
            lambda: controller_python(options.controller.absolute()),
            "agentlightning 1.0's controller runs agents",
        ),
    }
    results, skipped = [], []
    for part, (python_of, name) in parts.items():
        if options.only not in (None, part):
            continue
        python = python_of()
        if python is None:
            skipped.append(name)
        else:
            results.append(runs(name, python, HERE / f"{part}.py", options.agl.absolute()))
    for name in skipped:
        print(f"SKIPPED: {name}: it needs Python 3.12 or newer: set CONTROLLER_PYTHON=/path/to/python3.12")
    print(f"parts: {sum(results)} passed, {results.count(False)} failed, {len(skipped)} skipped")
    sys.exit(0 if results and all(results) else 1)


if __name__ == "__main__":
    main()
