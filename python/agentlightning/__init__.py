"""Agent Lightning: train any AI agent, without changing it.

Every public name can be taken from here (`import agentlightning as agl; agl.Trainer`). It is imported when
it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .adapter import *  # noqa: F403
    from .algorithm import *  # noqa: F403
    from .algorithm.verl import VERLNotSupportedError as VERLNotSupportedError
    from .client import *  # noqa: F403
    from .config import *  # noqa: F403
    from .emitter import *  # noqa: F403
    from .env_var import *  # noqa: F403
    from .execution import *  # noqa: F403
    from .former import FormerPartError as FormerPartError
    from .instrumentation import instrument as instrument
    from .litagent import *  # noqa: F403
    from .llm_proxy import LLMProxy as LLMProxy
    from .logging import *  # noqa: F403
    from .runner import *  # noqa: F403
    from .server import *  # noqa: F403
    from .store import *  # noqa: F403
    from .store.errors import *  # noqa: F403
    from .tracer import *  # noqa: F403
    from .trainer import *  # noqa: F403
    from .types.core import *  # noqa: F403
    from .types.resources import *  # noqa: F403
    from .types.tracer import *  # noqa: F403

__version__ = "0.1.0"

if not TYPE_CHECKING:
    # Hidden from type checkers, which would take any name for given.
    def __getattr__(name: str) -> Any:
        from importlib import import_module

        from ._exports import FORMER_SUBMODULES, MODULE_OF, SUBMODULES

        if name in FORMER_SUBMODULES:
            return import_module(FORMER_SUBMODULES[name])
        if name in SUBMODULES:
            try:
                return import_module(f"{__name__}.{name}")
            except ModuleNotFoundError as error:
                if error.name != f"{__name__}.{name}":
                    raise
                raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
        if (module := MODULE_OF.get(name)) is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(module), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    from ._exports import FORMER_SUBMODULES, MODULE_OF, SUBMODULES

    return sorted({*globals(), *MODULE_OF, *SUBMODULES, *FORMER_SUBMODULES})
