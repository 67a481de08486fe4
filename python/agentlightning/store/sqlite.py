"""A store in a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

from agentlightning import _core
from agentlightning._native import as_exception

from .native import NativeStore

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["SqliteLightningStore"]


class SqliteLightningStore(NativeStore):
    """A store in an SQLite file, which is made if there is none.

    What a method has returned for is in the file. `sync` says what that survives: `normal`, the end of the
    process, SIGKILL included; `full`, power loss too.

    The file belongs to one store in one process at a time; opening it twice is an error, and so is using the
    store in a forked child. Serve it with `LightningStoreServer` for other processes.
    """

    def __init__(self, path: str | os.PathLike[str], *, sync: Literal["normal", "full"] = "normal") -> None:
        self._path = Path(path).absolute()
        try:
            self._native = _core.Store.sqlite(self._path, sync)
        except _core.CoreError as error:
            raise as_exception(*error.args) from None

    @property
    def path(self) -> Path:
        """The file, as an absolute path."""
        return self._path

    def _core(self) -> _core.Store:
        return self._native

    def close(self) -> None:
        """Finishes what was begun and closes the file; later calls fail."""
        self._native.close()

    def __enter__(self) -> SqliteLightningStore:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"SqliteLightningStore({str(self._path)!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "SqliteLightningStore cannot be pickled, for its file belongs to one process at a time: "
            "wrap it in LightningStoreServer"
        )
