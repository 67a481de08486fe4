"""0.3's wrapper for stores that are used from several threads."""

from __future__ import annotations

from .base import LightningStore, LightningStoreCapabilities
from .delegate import DelegatingStore

__all__ = ["LightningStoreThreaded"]


class LightningStoreThreaded(DelegatingStore):
    """Hands every call on to `store`.

    The stores of this package may be used from any thread as they are, so there is nothing to lock. A store
    of your own is called as it comes, and has to look after itself.
    """

    def __init__(self, store: LightningStore) -> None:
        self.store = store

    def _target(self) -> LightningStore:
        return self.store

    @property
    def capabilities(self) -> LightningStoreCapabilities:
        """What the store can do."""
        return {**self.store.capabilities, "async_safe": True, "thread_safe": True}
