"""`AgentOpsTracer`: `OtelTracer` with AgentOps' session around each trace."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from opentelemetry.trace import StatusCode

from agentlightning.tracer.otel import FLUSH_TIMEOUT_SECONDS, LightningSpanProcessor, OtelTracer

if TYPE_CHECKING:
    from agentlightning.store.base import LightningStore

__all__ = ["AgentOpsTracer", "LightningSpanProcessor"]

logger = logging.getLogger(__name__)


class AgentOpsTracer(OtelTracer):
    """Records what `OtelTracer` does, below a span of AgentOps' kind for the whole trace.

    AgentOps' decorators and `agentops.start_trace` work inside. Nothing is sent to AgentOps' service, unless
    `agentlightning.instrumentation.agentops.enable_agentops_service()` has been called before. Calls of
    models and frameworks are recorded by our own instrumentation, not by AgentOps', which would record them a
    second time.
    """

    def __init__(
        self,
        *,
        agentops_managed: bool = True,
        instrument_managed: bool = True,
        daemon: bool = True,
        flush_timeout: float = FLUSH_TIMEOUT_SECONDS,
    ) -> None:
        """Makes a tracer, which does nothing until `init_worker`.

        Args:
            agentops_managed: Whether AgentOps is initialized here; else it is expected to be.
            instrument_managed: Whether calls of models, and what agent frameworks do, are recorded.
            daemon: Ignored.
            flush_timeout: Seconds that the end of a trace waits for a store that can't be reached.

        Raises:
            ImportError: without the package `agentops`.
        """
        try:
            import agentops  # noqa: F401
        except ImportError as error:
            raise ImportError(
                "AgentOpsTracer needs the package agentops: pip install agentops. "
                "OtelTracer records the same calls without it."
            ) from error
        super().__init__(instrument=instrument_managed, flush_timeout=flush_timeout)
        self.agentops_managed = agentops_managed
        self.instrument_managed = instrument_managed
        self.daemon = daemon

    def init_worker(self, worker_id: int, store: LightningStore | None = None) -> None:
        """Sets OpenTelemetry and AgentOps up, the first time, and has what the agent does recorded."""
        super().init_worker(worker_id, store)
        from agentlightning.instrumentation import agentops as instrumentation

        if self.agentops_managed:
            os.environ.setdefault("AGENTOPS_API_KEY", "dummy")
            # Otherwise it leaves a file in whatever folder the agent runs in.
            os.environ.setdefault("AGENTOPS_LOGGING_TO_FILE", "FALSE")
            instrumentation.initialize(self._provider())
        else:
            instrumentation.join()

    @contextmanager
    def _root(self, name: str | None) -> Iterator[None]:
        """AgentOps' span `{name}.session`, which ends last."""
        import agentops

        trace: Any = None
        try:
            trace = agentops.start_trace(trace_name=name or "session")
        except Exception:
            logger.exception("AgentOps could not start a trace.")
        state = StatusCode.OK
        try:
            yield
        except Exception:
            state = StatusCode.ERROR
            raise
        finally:
            if trace is not None:
                try:
                    agentops.end_trace(trace, end_state=state)
                except Exception:
                    logger.exception("AgentOps could not end a trace.")
