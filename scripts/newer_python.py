"""Finds a Python that is new enough for what `make` runs beside our own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path


def newer_python() -> Path | None:
    """A Python 3.12 or newer; None when there is none. CONTROLLER_PYTHON names one."""
    candidates = [os.environ.get("CONTROLLER_PYTHON"), sys.executable]
    candidates += [shutil.which(f"python3.{minor}") for minor in (14, 13, 12)]
    candidates += sorted(Path.home().glob(".pyenv/versions/3.1[2-9]*/bin/python"))
    for candidate in filter(None, candidates):
        check = [str(candidate), "-c", "import sys, venv; sys.exit(sys.version_info < (3, 12))"]
        if subprocess.run(check, capture_output=True).returncode == 0:
            return Path(candidate)
    return None
