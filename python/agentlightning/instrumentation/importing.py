"""Waiting for the import of other people's packages: importing one takes a second, which an agent that never
uses it should not pay."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

logger = logging.getLogger(__name__)


class _WatchingLoader(Loader):
    """Loads a module as its own loader does, and says so afterwards."""

    def __init__(self, inner: Loader, loaded: Callable[[], None]) -> None:
        self._inner = inner
        self._loaded = loaded

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # The module is left with the loader that it would have had.
        module.__loader__ = self._inner
        if module.__spec__ is not None:
            module.__spec__.loader = self._inner
        self._inner.exec_module(module)
        self._loaded()


class ImportWatch(MetaPathFinder):
    """Calls back once a module has been imported, or at once if it has been."""

    def __init__(self) -> None:
        self._waiting: dict[str, Callable[[], None]] = {}
        self._lock = threading.RLock()

    def when_imported(self, name: str, loaded: Callable[[], None]) -> None:
        """Calls `loaded` as soon as the module is there."""
        with self._lock:
            if name not in sys.modules:
                self._waiting[name] = loaded
                if self not in sys.meta_path:
                    sys.meta_path.insert(0, self)
                return
        loaded()

    def forget(self) -> None:
        """Waits for nothing any more."""
        with self._lock:
            self._waiting.clear()
            if self in sys.meta_path:
                sys.meta_path.remove(self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Finds the modules that are waited for, the way that the others would."""
        if fullname not in self._waiting:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = None
            if find is not None and finder is not self:
                spec = find(fullname, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _WatchingLoader(spec.loader, lambda: self._imported(fullname))
                return spec
        return None

    def _imported(self, name: str) -> None:
        with self._lock:
            loaded = self._waiting.pop(name, None)
        if loaded is not None:
            loaded()
