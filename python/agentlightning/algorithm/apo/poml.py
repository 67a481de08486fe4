"""The name under which 0.3's `APO` looks `poml` up; prompts are plain texts here, and nothing is rendered."""

from __future__ import annotations

from typing import Any, NoReturn

from agentlightning.former import FormerPartError

__all__ = ["poml"]


def poml(*args: Any, **kwargs: Any) -> NoReturn:
    """Refuses, by a `FormerPartError`."""
    raise FormerPartError("poml", "give APO plain texts, as gradient_prompts and edit_prompts")
