"""The types of Agent Lightning: pydantic models whose JSON is what stores keep and servers speak."""

from .core import *  # noqa: F403
from .core import __all__ as _core
from .resources import *  # noqa: F403
from .resources import __all__ as _resources
from .tracer import *  # noqa: F403
from .tracer import __all__ as _tracer

__all__ = [*_core, *_resources, *_tracer]  # pyright: ignore[reportUnsupportedDunderAll]
