"""The bridge to `agentlightning._core`: JSON bytes there and back, and results brought to the event loop.

The Rust side never calls into Python. A finished call is put into a queue of the event loop that waits for
it, whose descriptor the loop watches; the loop itself takes it out. So it does not matter which thread or
which loop a store is used from, and nothing is left that could call into an interpreter that is ending.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

from pydantic_core import to_json

from agentlightning import _core
from agentlightning.store.errors import (
    InvalidArgumentError,
    NotFoundError,
    StoreError,
    StoreUnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["as_exception", "call", "call_blocking", "encode"]


class _Waiters:
    """The calls that one event loop waits for. All of it happens on the loop's own thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.queue = _core.CompletionQueue()
        self.tickets = itertools.count()
        self.futures: dict[int, asyncio.Future[bytes]] = {}
        loop.add_reader(self.queue.fileno(), self._drain)

    def _drain(self) -> None:
        for ticket, outcome in self.queue.drain():
            future = self.futures.pop(ticket, None)
            if future is None or future.done():
                continue
            if isinstance(outcome, bytes):
                future.set_result(outcome)
            else:
                future.set_exception(as_exception(*outcome))


_waiters: WeakKeyDictionary[asyncio.AbstractEventLoop, _Waiters] = WeakKeyDictionary()
_lock = threading.Lock()


def _forget_parent() -> None:
    global _waiters, _lock
    _waiters = WeakKeyDictionary()
    _lock = threading.Lock()


# The loops of a parent process do not run in its children.
os.register_at_fork(after_in_child=_forget_parent)


def _waiters_of(loop: asyncio.AbstractEventLoop) -> _Waiters:
    with _lock:
        waiters = _waiters.get(loop)
        if waiters is None:
            for other in [other for other in _waiters if other.is_closed()]:
                del _waiters[other]
            waiters = _waiters[loop] = _Waiters(loop)
        return waiters


def as_exception(kind: str, message: str, field: str | None = None) -> Exception:
    """The exception that stands for a failure of the Rust side."""
    match kind:
        case "not_found":
            return NotFoundError(message)
        case "invalid":
            return InvalidArgumentError(message, field)
        case "unsupported":
            return NotImplementedError(message)
        case "unavailable":
            return StoreUnavailableError(message)
        case _:
            return StoreError(message)


async def call(store: _core.Store, method: str, payload: bytes) -> bytes:
    """Calls a store's method and waits for its answer. Cancelling the wait ends the call."""
    # A store in memory answers at once. Others still get their turn, and a cancellation precedes the effect.
    await asyncio.sleep(0)
    loop = asyncio.get_running_loop()
    waiters = _waiters_of(loop)
    ticket = next(waiters.tickets)
    try:
        answer = store.submit(method, payload, waiters.queue, ticket)
    except _core.CoreError as error:
        raise as_exception(*error.args) from None
    if isinstance(answer, bytes):
        return answer
    future = waiters.futures[ticket] = loop.create_future()
    try:
        return cast("bytes", await future)
    except asyncio.CancelledError:
        answer.cancel()
        raise
    finally:
        waiters.futures.pop(ticket, None)


def call_blocking(store: _core.Store, method: str, payload: bytes) -> bytes:
    """Calls a store's method without an event loop. Ctrl+C ends the wait."""
    try:
        return store.call(method, payload)
    except _core.CoreError as error:
        raise as_exception(*error.args) from None


def encode(fields: Mapping[str, Any]) -> bytes:
    """Arguments as JSON; `TypeError` naming the argument that has none.

    Pydantic models, dataclasses, dates and sets have JSON; arrays and scalars of NumPy and PyTorch are taken
    by their `tolist`. Not-a-number and infinities become the strings "NaN", "Infinity" and "-Infinity".
    """
    try:
        return _to_json(fields)
    except Exception as error:
        raise _no_json("", fields, error, frozenset()) from error


def _to_json(value: Any) -> bytes:
    return to_json(value, inf_nan_mode="strings", fallback=_fallback)


def _fallback(value: Any) -> Any:
    if callable(tolist := getattr(value, "tolist", None)):
        return tolist()
    raise TypeError(f"{type(value).__name__} has no JSON")


def _no_json(path: str, value: Any, error: Exception, above: frozenset[int]) -> TypeError:
    """Says which part of `value`, found at `path` below the objects with the ids `above`, has no JSON."""
    if isinstance(value, dict):
        parts = [(f"{path}.{key}" if path else str(key), item) for key, item in value.items()]
    elif isinstance(value, (list, tuple)):
        parts = [(f"{path}[{index}]", item) for index, item in enumerate(value)]
    else:
        parts = []
    above |= {id(value)}
    for name, item in parts:
        try:
            _to_json(item)
        except Exception as inner:
            if id(item) not in above:
                return _no_json(name, item, inner, above)
    return TypeError(f"{path or 'the argument'} must be JSON: {error}")
