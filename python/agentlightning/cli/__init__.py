"""The `agl` command. All of it is in the Rust core; this hands the arguments over, but for what only Python
knows."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with these arguments, or those of the process, and returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] == "doctor" and all(argument == "--import" for argument in arguments[1:]):
        from agentlightning.cli.doctor import doctor

        return doctor(imports="--import" in arguments)
    from agentlightning import _core

    # Python's own handler would only note that Ctrl+C was pressed, and no Python runs from here on.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return _core.cli_main(["agl", *arguments])
