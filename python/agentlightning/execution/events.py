"""Stop signals that algorithm and runners share."""

from __future__ import annotations

import multiprocessing
import threading
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext


@runtime_checkable
class ExecutionEvent(Protocol):
    """A flag that one side sets and the others look at or wait for."""

    def set(self) -> None:
        """Raises the flag."""
        ...

    def clear(self) -> None:
        """Lowers the flag."""
        ...

    def is_set(self) -> bool:
        """Whether the flag is up."""
        ...

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until the flag is up, at most `timeout` seconds, and says whether it is."""
        ...


class ThreadingEvent:
    """A flag shared by threads."""

    __slots__ = ("_evt",)

    def __init__(self) -> None:
        self._evt = threading.Event()

    def set(self) -> None:
        """Raises the flag."""
        self._evt.set()

    def clear(self) -> None:
        """Lowers the flag."""
        self._evt.clear()

    def is_set(self) -> bool:
        """Whether the flag is up."""
        return self._evt.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until the flag is up, at most `timeout` seconds, and says whether it is."""
        return self._evt.wait(timeout)


class MultiprocessingEvent:
    """A flag shared by processes of one `multiprocessing` context."""

    __slots__ = ("_evt",)

    def __init__(self, *, ctx: BaseContext | None = None) -> None:
        self._evt = (ctx or multiprocessing.get_context()).Event()

    def set(self) -> None:
        """Raises the flag."""
        self._evt.set()

    def clear(self) -> None:
        """Lowers the flag."""
        self._evt.clear()

    def is_set(self) -> bool:
        """Whether the flag is up."""
        return self._evt.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until the flag is up, at most `timeout` seconds, and says whether it is."""
        return self._evt.wait(timeout)
