"""0.3's store over collections, which has no counterpart here."""

from __future__ import annotations

from typing import Any

from .base import LightningStore
from .errors import StoreUnsupportedError

__all__ = ["CollectionBasedLightningStore"]


class CollectionBasedLightningStore(LightningStore):
    """Only a name, for `isinstance` and annotations: stores are made of the Rust core's backends, not of
    Python collections."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise StoreUnsupportedError(
            "CollectionBasedLightningStore can't be made, for stores are not built of Python collections "
            "here: use InMemoryLightningStore() or SqliteLightningStore(path), or write a subclass of "
            "LightningStore"
        )
