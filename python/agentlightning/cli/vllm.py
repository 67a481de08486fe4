"""`agl vllm`: vLLM's own command. Its server gives token ids to whoever asks for them, as our tracers do."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from agentlightning.instrumentation.vllm import instrument_vllm

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs vLLM's command with these arguments, or those of the process, and returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        instrument_vllm()
        command = importlib.import_module("vllm.entrypoints.cli.main")
    except ImportError as error:
        print(f"error: agl vllm: {error}", file=sys.stderr)  # noqa: T201
        return 1
    sys.argv = ["vllm", *arguments]
    return command.main() or 0
