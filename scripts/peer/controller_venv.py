#!/usr/bin/env python3
"""An environment with agentlightning 1.0, which needs Python 3.12 or newer: found, or made."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parent.parent.parent / "requirements" / "controller.txt"


def new_python() -> Path | None:
    """A Python that agentlightning 1.0 runs on."""
    candidates = [os.environ.get("CONTROLLER_PYTHON"), sys.executable]
    candidates += [shutil.which(f"python3.{minor}") for minor in (14, 13, 12)]
    candidates += sorted(Path.home().glob(".pyenv/versions/3.1[2-9]*/bin/python"))
    for candidate in filter(None, candidates):
        check = [str(candidate), "-c", "import sys, venv; sys.exit(sys.version_info < (3, 12))"]
        if subprocess.run(check, capture_output=True).returncode == 0:
            return Path(candidate)
    return None


def controller_python(folder: Path) -> Path | None:
    """The Python of an environment with agentlightning 1.0, which is made if there is none."""
    python, ready = folder / "bin" / "python", folder / "ready"
    if not ready.exists():
        base = new_python()
        if base is None:
            return None
        print(f"── agentlightning 1.0 in {folder}", file=sys.stderr, flush=True)
        subprocess.run([str(base), "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", "--requirement", str(REQUIREMENTS)], check=True
        )
        ready.touch()
    return python


def main() -> None:
    """Prints the folder of its programs; nothing where there is no Python for it."""
    python = controller_python(Path(sys.argv[1]).absolute())
    if python is None:
        print("agentlightning 1.0 is left out: set CONTROLLER_PYTHON=/path/to/python3.12", file=sys.stderr)
    else:
        print(python.parent)


if __name__ == "__main__":
    main()
