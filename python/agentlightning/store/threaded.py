"""0.3's wrapper for stores that are used from several threads."""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from .base import INTERFACE, LightningStore, LightningStoreCapabilities
from .delegate import DelegatingStore

__all__ = ["LightningStoreThreaded"]


class _Ticket:
    """A place in the queue for a lock."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.admitted: asyncio.Future[None] = loop.create_future()
        # Guarded by the lock's mutex, which the future is not.
        self.has_lock = False

    def admit(self) -> None:
        if not self.admitted.done():
            self.admitted.set_result(None)


class _Lock:
    """A lock for tasks of any event loops, first come, first served. Waiting for it blocks no loop."""

    def __init__(self) -> None:
        # Only ever held for a moment.
        self._mutex = threading.Lock()
        self._taken = False
        self._queue: deque[_Ticket] = deque()

    def __reduce__(self) -> tuple[type[_Lock], tuple[()]]:
        return (_Lock, ())

    async def __aenter__(self) -> None:
        with self._mutex:
            if not self._taken:
                self._taken = True
                return
            ticket = _Ticket(asyncio.get_running_loop())
            self._queue.append(ticket)
        try:
            await ticket.admitted
        except BaseException:
            # Cancelled, or given up together with its loop.
            with self._mutex:
                if ticket.has_lock:
                    # It was on its way.
                    self._pass_on()
                elif ticket in self._queue:
                    self._queue.remove(ticket)
            raise

    async def __aexit__(self, *error: object) -> None:
        with self._mutex:
            self._pass_on()

    def _pass_on(self) -> None:
        while self._queue:
            ticket = self._queue.popleft()
            try:
                ticket.loop.call_soon_threadsafe(ticket.admit)
            except RuntimeError:
                # The loop has been closed with the task still waiting.
                continue
            ticket.has_lock = True
            return
        self._taken = False


class LightningStoreThreaded(DelegatingStore):
    """Makes a store usable from several threads and event loops.

    The stores of this package are so already: calls go straight on to them. Calls to a store of your own that
    is not `thread_safe` happen one after the other, except `wait_for_rollouts`, which would keep the others
    out for as long as it waits. Other than with 0.3, a call that waits for its turn blocks no event loop.
    """

    def __init__(self, store: LightningStore) -> None:
        self.store = store
        self._lock = None if store.capabilities.get("thread_safe") else _Lock()

    def _target(self) -> LightningStore:
        return self.store

    @property
    def capabilities(self) -> LightningStoreCapabilities:
        """What the store can do."""
        return {**self.store.capabilities, "async_safe": True, "thread_safe": True}


def _in_turn(name: str) -> Any:
    hand_on = getattr(DelegatingStore, name)

    @functools.wraps(hand_on)
    async def method(self: LightningStoreThreaded, *args: Any, **kwargs: Any) -> Any:
        if self._lock is None:
            return await hand_on(self, *args, **kwargs)
        async with self._lock:
            return await hand_on(self, *args, **kwargs)

    return method


if not TYPE_CHECKING:
    for _name in INTERFACE:
        if inspect.iscoroutinefunction(getattr(LightningStore, _name)) and _name != "wait_for_rollouts":
            setattr(LightningStoreThreaded, _name, _in_turn(_name))
