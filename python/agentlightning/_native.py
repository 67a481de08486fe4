"""The bridge to `agentlightning._core`: JSON bytes there and back, and results brought to the event loop.

The Rust side never calls into Python. A finished call is put into a queue of the event loop that waits for
it, whose descriptor the loop watches; the loop itself takes it out. So it does not matter which thread or
which loop a store is used from, and nothing is left that could call into an interpreter that is ending.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import threading
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

from pydantic_core import to_json

from agentlightning import _core
from agentlightning.store.errors import (
    ConflictError,
    InvalidArgumentError,
    NotFoundError,
    SpansGoneError,
    StoreError,
    StoreUnauthorizedError,
    StoreUnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["as_exception", "call", "call_blocking", "encode", "next_event"]


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
        case "missing":
            return KeyError(message)
        case "conflict":
            return ConflictError(message)
        case "gone":
            return SpansGoneError(message)
        case "unsupported":
            return NotImplementedError(message)
        case "unavailable":
            return StoreUnavailableError(message)
        case "unauthorized":
            return StoreUnauthorizedError(message)
        case _:
            return StoreError(message)


async def call(store: _core.Store, method: str, payload: bytes) -> bytes:
    """Calls a store's method and waits for its answer. Cancelling the wait ends the call."""
    # A store in memory answers at once. Others still get their turn, and a cancellation precedes the effect.
    await asyncio.sleep(0)
    return await _answer(lambda queue, ticket: store.submit(method, payload, queue, ticket))


async def next_event(subscription: _core.Subscription) -> bytes:
    """Waits for the next event of a store, JSON; null when there are no more."""
    return await _answer(subscription.next)


async def _answer(submit: Callable[[_core.CompletionQueue, int], bytes | _core.Task]) -> bytes:
    loop = asyncio.get_running_loop()
    waiters = _waiters_of(loop)
    ticket = next(waiters.tickets)
    try:
        answer = submit(waiters.queue, ticket)
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
    by their `tolist`. Not-a-number and infinities become the strings "NaN", "Infinity" and "-Infinity". Bytes
    have no JSON, and neither have integers beyond 64 bits, which would come back as floats.
    """
    try:
        encoded = _to_json(fields)
    except Exception as error:
        raise _no_json("", fields, error, frozenset()) from error
    _check("", fields, harmless=_HARMLESS_KINDS if _LONG_NUMBER.search(encoded) else _SCALAR_KINDS)
    return encoded


_HARMLESS_KINDS: frozenset[type] = frozenset({str, float, bool, type(None)})
_SCALAR_KINDS: frozenset[type] = _HARMLESS_KINDS | {int}
# No integer beyond 64 bits is shorter.
_LONG_NUMBER = re.compile(rb"\d{19}")


def _check(path: str, value: Any, harmless: frozenset[type]) -> None:
    """Refuses what JSON would change on the quiet; values of the types `harmless` need no look."""
    if isinstance(value, dict):
        kinds = {*map(type, value), *map(type, value.values())}
    elif isinstance(value, (list, tuple, set, frozenset)):
        kinds = set(map(type, value))
    elif isinstance(value, (bytes, bytearray)):
        raise TypeError(f"{path} must be JSON, which bytes are not: decode them, or encode them as Base64")
    elif isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise TypeError(f"{path} must be an integer of at most 64 bits, or a string")
    else:
        return
    if kinds <= harmless:
        return
    if isinstance(value, dict):
        for key in value:
            if isinstance(key, bytes):
                raise TypeError(f"{path or 'the argument'} must have strings as keys, not {key!r}")
    for name, item in _parts(path, value):
        _check(name, item, harmless)


def _parts(path: str, value: Any) -> list[tuple[str, Any]]:
    """What a container consists of, by the names by which messages call it."""
    if isinstance(value, dict):
        return [(f"{path}.{key}" if path else str(key), item) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return [(f"{path}[{index}]", item) for index, item in enumerate(value)]
    if isinstance(value, (set, frozenset)):
        return [(path, item) for item in value]
    return []


def _to_json(value: Any) -> bytes:
    return to_json(value, inf_nan_mode="strings", fallback=_fallback)


def _fallback(value: Any) -> Any:
    if callable(tolist := getattr(value, "tolist", None)):
        return tolist()
    raise TypeError(f"{type(value).__name__} has no JSON")


def _no_json(path: str, value: Any, error: Exception, above: frozenset[int]) -> TypeError:
    """Says which part of `value`, found at `path` below the objects with the ids `above`, has no JSON."""
    above |= {id(value)}
    for name, item in _parts(path, value):
        try:
            _to_json(item)
        except Exception as inner:
            if id(item) not in above:
                return _no_json(name, item, inner, above)
    return TypeError(f"{path or 'the argument'} must be JSON: {error}")
