"""Stores: where rollouts, attempts, spans, resources and workers are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .base import LightningStore, LightningStoreCapabilities, LightningStoreStatistics
    from .client_server import LightningStoreClient, LightningStoreServer
    from .collection_based import CollectionBasedLightningStore
    from .memory import InMemoryLightningStore
    from .sqlite import SqliteLightningStore
    from .threaded import LightningStoreThreaded

__all__ = [
    "CollectionBasedLightningStore",
    "InMemoryLightningStore",
    "LightningStore",
    "LightningStoreCapabilities",
    "LightningStoreClient",
    "LightningStoreServer",
    "LightningStoreStatistics",
    "LightningStoreThreaded",
    "SqliteLightningStore",
]

_MODULE_OF = {
    "CollectionBasedLightningStore": "collection_based",
    "InMemoryLightningStore": "memory",
    "LightningStore": "base",
    "LightningStoreCapabilities": "base",
    "LightningStoreClient": "client_server",
    "LightningStoreServer": "client_server",
    "LightningStoreStatistics": "base",
    "LightningStoreThreaded": "threaded",
    "SqliteLightningStore": "sqlite",
}

if not TYPE_CHECKING:
    # Hidden from type checkers, which would take any name for given.
    def __getattr__(name: str) -> Any:
        if (module := _MODULE_OF.get(name)) is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value = getattr(import_module(f"{__name__}.{module}"), name)
        globals()[name] = value
        return value
