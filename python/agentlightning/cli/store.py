"""`agl store`: serves a store."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from agentlightning.cli import run_core

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Serves a store with these options, or those of the process, and returns the exit code."""
    return run_core("store", *(sys.argv[1:] if argv is None else argv))
