"""Stores that hand their calls on to another one."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any

from .base import INTERFACE, LightningStore

__all__ = ["DelegatingStore", "innermost"]


class DelegatingStore(LightningStore):
    """Hands every method of the interface on to the store that `_target` names."""

    def _target(self) -> LightningStore:
        raise NotImplementedError


def innermost(store: LightningStore) -> LightningStore:
    """The store that calls end up at."""
    while isinstance(store, DelegatingStore):
        store = store._target()
    return store


def _delegate(name: str) -> Any:
    inherited = getattr(LightningStore, name)
    if inspect.iscoroutinefunction(inherited):

        @functools.wraps(inherited)
        async def method(self: DelegatingStore, *args: Any, **kwargs: Any) -> Any:
            return await getattr(self._target(), name)(*args, **kwargs)

    else:

        @functools.wraps(inherited)
        def method(self: DelegatingStore, *args: Any, **kwargs: Any) -> Any:
            return getattr(self._target(), name)(*args, **kwargs)

    return method


if not TYPE_CHECKING:
    for _name in INTERFACE:
        setattr(DelegatingStore, _name, _delegate(_name))
