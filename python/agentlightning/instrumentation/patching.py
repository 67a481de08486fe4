"""Replacing methods of other people's classes, and putting them back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_MARK = "_agentlightning_original"
_ABSENT = object()


class Patches:
    """What one instrumentation has replaced."""

    def __init__(self) -> None:
        self._done: list[tuple[Any, str, Any, Any]] = []

    def replace(self, owner: Any, name: str, make: Callable[[Any], Any]) -> bool:
        """Puts `make(original)` in place of an attribute of a class or module; False if it has none, or has
        ours already."""
        original = getattr(owner, name, None)
        if original is None or hasattr(original, _MARK):
            return False
        replacement = make(original)
        for attribute in (
            "__name__",
            "__qualname__",
            "__doc__",
            "__module__",
            "__signature__",
            "__wrapped__",
        ):
            value = original if attribute == "__wrapped__" else getattr(original, attribute, None)
            if value is not None:
                setattr(replacement, attribute, value)
        setattr(replacement, _MARK, original)
        # An inherited method is not the class's own, and is not left there.
        own = owner.__dict__.get(name, _ABSENT)
        setattr(owner, name, replacement)
        self._done.append((owner, name, own, replacement))
        return True

    def undo(self) -> None:
        """Puts everything back, but for what somebody else has replaced since."""
        for owner, name, own, replacement in reversed(self._done):
            if owner.__dict__.get(name) is not replacement:
                continue
            if own is _ABSENT:
                delattr(owner, name)
            else:
                setattr(owner, name, own)
        self._done.clear()
