"""Records what AG2 (from 1.0 on) does, by the telemetry that it has itself, which is added to every run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from agentlightning.instrumentation.patching import Patches
from agentlightning.tracer.otel import current_session, shared_provider

_patches = Patches()


def instrument() -> None:
    """Patches `Agent._make_run`, which every way of asking an agent comes through."""
    _patches.replace(sys.modules["ag2.agent"].Agent, "_make_run", _with_telemetry)


def uninstrument() -> None:
    """Leaves AG2 as it was."""
    _patches.undo()


def _with_telemetry(original: Callable[..., Any]) -> Callable[..., Any]:
    from ag2.middleware.builtin.telemetry import TelemetryMiddleware

    def make_run(self: Any, *args: Any, middleware: Any = (), **kwargs: Any) -> Any:
        middleware = tuple(middleware)
        has_own = any(isinstance(item, TelemetryMiddleware) for item in (*middleware, *self._middleware))
        if current_session() is not None and not has_own:
            telemetry = TelemetryMiddleware(tracer_provider=shared_provider(), agent_name=self.name)
            middleware = (telemetry, *middleware)
        return original(self, *args, middleware=middleware, **kwargs)

    return make_run
