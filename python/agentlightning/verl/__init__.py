"""0.3's trainer over verl, which is not driven from here yet: names only.

Using one raises `VERLNotSupportedError`, which says what to use instead.
"""

from __future__ import annotations

from typing import Any

from agentlightning.algorithm.verl import VERLNotSupportedError

__all__ = ["VERLNotSupportedError"]


class Refused:
    """A class that can't be made."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise VERLNotSupportedError(f"{type(self).__module__}.{type(self).__qualname__}")
