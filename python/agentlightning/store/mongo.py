"""0.3's store in MongoDB, which has no counterpart here."""

from __future__ import annotations

from typing import Any

from .base import LightningStore
from .errors import StoreUnsupportedError

__all__ = ["MongoLightningStore"]


class MongoLightningStore(LightningStore):
    """Only a name, for `isinstance` and annotations: no store of this package is kept in MongoDB."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise StoreUnsupportedError(
            "there is no store in MongoDB here: use SqliteLightningStore(path), which is durable, and serve "
            "it to other processes with LightningStoreServer or `agl store`"
        )
