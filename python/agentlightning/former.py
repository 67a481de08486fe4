"""Parts of 0.3 that are only names here, since what they did is done elsewhere."""

from __future__ import annotations

from typing import Any, ClassVar

__all__ = ["FormerPart", "FormerPartError"]


class FormerPartError(NotImplementedError):
    """A part of 0.3 was asked for that has nothing to do here; the message says what does its work."""

    def __init__(self, name: str, instead: str) -> None:
        super().__init__(f"{name} of agentlightning 0.3 has nothing to do here: {instead}")
        self.name = name
        self.instead = instead

    def __reduce__(self) -> tuple[type[FormerPartError], tuple[str, str]]:
        return (type(self), (self.name, self.instead))


class FormerPart:
    """A class that can be named, in annotations and where 0.3's is told by its class, and can't be made."""

    instead: ClassVar[str]
    """What does its work."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise FormerPartError(type(self).__name__, self.instead)
