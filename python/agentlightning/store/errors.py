"""What a store raises. All of them say what is wrong in words that 0.3's callers match on."""

from __future__ import annotations

__all__ = [
    "ConflictError",
    "InvalidArgumentError",
    "NotFoundError",
    "SpansGoneError",
    "StoreError",
    "StoreUnauthorizedError",
    "StoreUnavailableError",
    "StoreUnsupportedError",
]


class NotFoundError(ValueError):
    """The rollout or attempt named does not exist."""


class InvalidArgumentError(ValueError):
    """An argument makes no sense; `field` names it."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field

    def __reduce__(self) -> tuple[type[InvalidArgumentError], tuple[str, str | None]]:
        return (type(self), (str(self), self.field))


class ConflictError(ValueError):
    """The call does not fit what the store holds."""


class StoreUnavailableError(ConnectionError):
    """The store could not be reached, or did not answer in time."""


class StoreUnauthorizedError(PermissionError):
    """The store's server asks for a key, and this client has none or another."""


class StoreError(RuntimeError):
    """The store itself failed: the disk is full, the database is damaged."""


class SpansGoneError(StoreError):
    """The spans were there, and were removed to make room."""


class StoreUnsupportedError(NotImplementedError):
    """There is no such store here; the message says which one to use instead."""
