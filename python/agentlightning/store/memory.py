"""A store in this process's memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from agentlightning import _core

from .native import NativeStore

if TYPE_CHECKING:
    from agentlightning.types import Span

__all__ = ["InMemoryLightningStore"]

_DEFAULT_EVICTION = 0.7
_DEFAULT_SAFE_SHARE = 0.8


class InMemoryLightningStore(NativeStore):
    """A store in this process's memory, for tests and throw-away runs. It forgets when the process ends.

    It lives in the process that made it: a forked child gets a clear error, and it does not pickle. Serve it
    with `LightningStoreServer` for other processes.

    The options of 0.3 are accepted and checked, but have nothing to act on here. The store is safe to use
    from any thread whatever `thread_safe` says; deadlines fire by themselves, so there is no scan for
    `scan_debounce_seconds` to hold back; spans are never evicted, so the thresholds and `span_size_estimator`
    are not used; and `tracker` is not called.
    """

    def __init__(
        self,
        *,
        thread_safe: bool = False,
        eviction_memory_threshold: float | int | None = None,
        safe_memory_threshold: float | int | None = None,
        span_size_estimator: Callable[[Span], int] | None = None,
        tracker: Any = None,
        scan_debounce_seconds: float = 10.0,
    ) -> None:
        _check_thresholds(eviction_memory_threshold, safe_memory_threshold)
        self._native = _core.Store.memory()
        self._pid = os.getpid()

    def _core(self) -> _core.Store:
        if os.getpid() != self._pid:
            raise RuntimeError(
                f"this store lives in the memory of process {self._pid}: wrap it in LightningStoreServer"
            )
        return self._native

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "InMemoryLightningStore cannot be pickled, for it lives in this process's memory: wrap it in "
            "LightningStoreServer"
        )


def _check_thresholds(eviction: float | int | None, safe: float | int | None) -> None:
    if eviction is None and safe is None:
        return
    capacity = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    eviction_bytes = _in_bytes(
        "eviction_memory_threshold", _DEFAULT_EVICTION if eviction is None else eviction, capacity, 1
    )
    safe_bytes = (
        eviction_bytes * _DEFAULT_SAFE_SHARE
        if safe is None
        else _in_bytes("safe_memory_threshold", safe, capacity, 0)
    )
    if safe_bytes >= eviction_bytes:
        raise ValueError("safe_memory_threshold must be smaller than eviction_memory_threshold")


def _in_bytes(name: str, threshold: float | int, capacity: int, at_least: int) -> float:
    if isinstance(threshold, float):
        too_low = threshold <= 0 if at_least else threshold < 0
        if too_low or threshold > 1:
            raise ValueError(
                f"{name} must be a share between 0.0 and 1.0 or a number of bytes, not {threshold}"
            )
        return threshold * capacity
    if threshold < at_least:
        raise ValueError(f"{name} must be at least {at_least} bytes, not {threshold}")
    return threshold
