"""`WeaveTracer`: `OtelTracer` with the calls of Weave's ops as spans."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from agentlightning.former import FormerPart
from agentlightning.tracer.otel import FLUSH_TIMEOUT_SECONDS, OtelTracer
from agentlightning.utils.id import generate_id

if TYPE_CHECKING:
    from agentlightning.store.base import LightningStore

__all__ = ["WeaveTracer", "WeaveTracerManagedTraceServer"]

logger = logging.getLogger(__name__)


class WeaveTracer(OtelTracer):
    """Records what `OtelTracer` does, and calls of functions that are decorated with `weave.op`, below a span
    for the whole trace.

    No account with Weights & Biases is needed, and nothing is sent there: while a tracer is set up, Weave has
    a client that records into the trace. An agent that calls `weave.init` itself gets Weave's own client
    instead, and its ops are recorded there.
    """

    def __init__(
        self,
        *,
        project_name: str | None = None,
        weave_user_settings: Any = None,
        instrument_managed: bool = True,
        flush_timeout: float = FLUSH_TIMEOUT_SECONDS,
    ) -> None:
        """Makes a tracer, which does nothing until `init_worker`.

        Args:
            project_name: The name of traces that are given none.
            weave_user_settings: Weave's settings, as `weave.init` takes them.
            instrument_managed: Whether calls of models, and what agent frameworks do, are recorded.
            flush_timeout: Seconds that the end of a trace waits for a store that can't be reached.

        Raises:
            ImportError: without the package `weave`.
        """
        try:
            import weave  # noqa: F401
        except ImportError as error:
            raise ImportError(
                "WeaveTracer needs the package weave: pip install weave. "
                "OtelTracer records the same calls without it."
            ) from error
        super().__init__(instrument=instrument_managed, flush_timeout=flush_timeout)
        self.project_name = project_name or f"agl/weave-{generate_id(12)}"
        self.weave_user_settings = weave_user_settings
        self.instrument_managed = instrument_managed

    def init_worker(self, worker_id: int, store: LightningStore | None = None) -> None:
        """Sets OpenTelemetry and Weave up, the first time, and has what the agent does recorded."""
        super().init_worker(worker_id, store)
        from agentlightning.instrumentation import weave_client as instrumentation

        instrumentation.initialize(self.project_name, self.weave_user_settings)

    def teardown_worker(self, worker_id: int, *args: Any, **kwargs: Any) -> None:
        """Leaves Weave and other packages as they were."""
        super().teardown_worker(worker_id, *args, **kwargs)
        from agentlightning.instrumentation import weave_client as instrumentation

        instrumentation.forget()

    @contextmanager
    def _root(self, name: str | None) -> Iterator[None]:
        """A call of Weave's, named after the trace."""
        from agentlightning.instrumentation import weave_client as instrumentation

        call = instrumentation.begin(name or self.project_name, self._identity())
        try:
            yield
        except BaseException as exc:
            instrumentation.end(call, exc)
            raise
        instrumentation.end(call, None)

    def _identity(self) -> Mapping[str, Any]:
        from agentlightning.semconv import LightningResourceAttributes
        from agentlightning.tracer.otel import current_session

        session = current_session()
        if session is None or session.store is None:
            return {}
        return {
            LightningResourceAttributes.ROLLOUT_ID.value: session.rollout_id,
            LightningResourceAttributes.ATTEMPT_ID.value: session.attempt_id,
        }


class WeaveTracerManagedTraceServer(FormerPart):
    """What stood in for Weave's server: while a tracer is set up, Weave has a client that needs none."""

    instead: ClassVar[str] = "WeaveTracer gives Weave a client that records into traces and needs no server"
