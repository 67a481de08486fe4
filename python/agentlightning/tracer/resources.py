"""Which resources the rollout of this context works with."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentlightning.types import NamedResources

active_resources: ContextVar[NamedResources | None] = ContextVar(
    "agentlightning_active_resources", default=None
)
"""Set by a runner around the agent; read by instrumentation, which asks a model gateway for more than
others."""
