"""The `agl` command. Most of it is in the Rust core, to which this hands the arguments over; what needs other
Python packages, or is about them, is here."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from importlib import import_module

__all__ = ["main"]

_IN_PYTHON = {
    "doctor": "Tells which agent frameworks are installed and will be recorded",
    "prometheus": "Shows the figures that several processes count together, for Prometheus to fetch",
    "vllm": "Runs vLLM's own command: `agl vllm serve MODEL`",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with these arguments, or those of the process, and returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # With the URL of an endpoint, `doctor` is the core's.
    asks_about_python = all(argument.startswith("-") for argument in arguments[1:])
    if arguments and arguments[0] in _IN_PYTHON and (arguments[0] != "doctor" or asks_about_python):
        code: int = import_module(f"{__name__}.{arguments[0]}").main(arguments[1:])
        return code
    code = run_core(*arguments)
    if arguments in ([], ["-h"], ["--help"], ["help"]):
        print("\nWith further Python packages:", file=sys.stderr if code else sys.stdout)
        for name, text in _IN_PYTHON.items():
            print(f"  {name:10} {text}", file=sys.stderr if code else sys.stdout)
    return code


def run_core(*arguments: str) -> int:
    """Runs the Rust core's command and returns its exit code."""
    from agentlightning import _core

    # Python's own handler would only note that Ctrl+C was pressed, and no Python runs from here on.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return _core.cli_main(["agl", *arguments])
