#!/usr/bin/env python3
"""An environment with agentlightning 1.0, which needs Python 3.12 or newer: found, or made."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(SCRIPTS))

from newer_python import newer_python

REQUIREMENTS = SCRIPTS.parent / "requirements" / "controller.txt"


def controller_python(folder: Path) -> Path | None:
    """The Python of an environment with agentlightning 1.0, which is made if there is none."""
    python, ready = folder / "bin" / "python", folder / "ready"
    if not ready.exists():
        base = newer_python()
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
