"""Recording of calls that an agent makes through other people's SDKs, without a change to the agent.

A library is patched when it is imported, or at once where it has been, and left as it was when the last
tracer that asked for it is torn down. Outside of a trace the patches pass everything through.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
import threading
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

logger = logging.getLogger(__name__)

__all__ = ["instrument_all", "instrument_openai", "uninstrument_all", "uninstrument_openai"]

_lock = threading.RLock()
_openai_users = 0


def instrument_openai() -> None:
    """Has calls of the OpenAI SDK recorded, until `uninstrument_openai` has been called as often."""
    global _openai_users
    with _lock:
        _openai_users += 1
        if _openai_users > 1:
            return
        from agentlightning.instrumentation import threads

        threads.instrument()
        if "openai" in sys.modules:
            _patch_openai()
        else:
            # Importing it takes a second, which an agent that never uses it should not pay.
            sys.meta_path.insert(0, _finder)


def uninstrument_openai() -> None:
    """Undoes one call of `instrument_openai`."""
    global _openai_users
    with _lock:
        if _openai_users == 0:
            return
        _openai_users -= 1
        if _openai_users > 0:
            return
        from agentlightning.instrumentation import threads

        threads.uninstrument()
        if _finder in sys.meta_path:
            sys.meta_path.remove(_finder)
        patch = sys.modules.get("agentlightning.instrumentation.openai")
        if patch is not None:
            patch.uninstrument()


def instrument_all() -> None:
    """Has calls of every SDK that we know recorded."""
    instrument_openai()


def uninstrument_all() -> None:
    """Undoes one call of `instrument_all`."""
    uninstrument_openai()


def _patch_openai() -> None:
    try:
        from agentlightning.instrumentation import openai

        openai.instrument()
    except Exception:
        # An SDK that has changed beyond recognition costs the recording, not the agent.
        logger.exception("Calls of the OpenAI SDK can't be recorded.")


class _PatchingLoader(Loader):
    """Loads a module as its own loader does, and patches it afterwards."""

    def __init__(self, inner: Loader) -> None:
        self._inner = inner

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # The module is left with the loader that it would have had.
        module.__loader__ = self._inner
        if module.__spec__ is not None:
            module.__spec__.loader = self._inner
        self._inner.exec_module(module)
        with _lock:
            if _openai_users > 0:
                _patch_openai()


class _OpenAIFinder(MetaPathFinder):
    """Waits for the import of `openai`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "openai":
            return None
        with _lock:
            if self in sys.meta_path:
                sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _PatchingLoader(spec.loader)
        return spec


_finder = _OpenAIFinder()
