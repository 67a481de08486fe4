"""`agl vllm`: vLLM's own command. Its server gives token ids to whoever asks for them, as our tracers do."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Sequence

__all__ = ["main"]

_FIRST_VERSION = (0, 10, 2)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs vLLM's command with these arguments, or those of the process, and returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        vllm = importlib.import_module("vllm")
        command = importlib.import_module("vllm.entrypoints.cli.main")
    except ImportError as error:
        print(f"error: agl vllm needs the package vllm: {error}", file=sys.stderr)  # noqa: T201
        return 1
    version = str(getattr(vllm, "__version__", ""))
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:3])
    if numbers < _FIRST_VERSION:
        wanted = ".".join(map(str, _FIRST_VERSION))
        print(f"error: vLLM {version} gives out no token ids: install vllm>={wanted}", file=sys.stderr)  # noqa: T201
        return 1
    sys.argv = ["vllm", *arguments]
    return command.main() or 0
