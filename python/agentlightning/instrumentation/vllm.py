"""Whether the vLLM that is installed gives token ids to whoever asks for them, as our tracers and the gateway
do; there is nothing to patch in one that does."""

from __future__ import annotations

import importlib
import re

__all__ = ["instrument_vllm", "uninstrument_vllm"]

_FIRST_VERSION = (0, 10, 2)


def instrument_vllm() -> None:
    """Makes sure that vLLM gives out token ids.

    Raises:
        ImportError: without vLLM, or with one that is too old.
    """
    try:
        vllm = importlib.import_module("vllm")
    except ImportError as error:
        raise ImportError(f"this needs the package vllm: {error}") from error
    version = str(getattr(vllm, "__version__", ""))
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:3])
    if numbers < _FIRST_VERSION:
        wanted = ".".join(map(str, _FIRST_VERSION))
        raise ImportError(f"vLLM {version} gives out no token ids: install vllm>={wanted}")


def uninstrument_vllm() -> None:
    """Nothing to undo."""
