"""The types of Agent Lightning: pydantic models whose JSON is what stores keep and servers speak."""

from typing import TYPE_CHECKING

from . import core, resources, tracer
from .core import *  # noqa: F403
from .resources import *  # noqa: F403
from .tracer import *  # noqa: F403

if not TYPE_CHECKING:
    # Type checkers follow the imports above, and cannot read this. It keeps the submodules out of `import *`.
    __all__ = [*core.__all__, *resources.__all__, *tracer.__all__]
