"""The tracer interface, and which tracer is the active one."""

from __future__ import annotations

import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

from agentlightning.types import ParallelWorkerBase

if TYPE_CHECKING:
    from agentlightning.store.base import LightningStore
    from agentlightning.types import Attributes, Span, SpanCoreFields, SpanRecordingContext, TraceStatus

logger = logging.getLogger(__name__)

T = TypeVar("T")

# A context variable, not a module global: threads, tasks and overlapping rollouts each see their own tracer.
_active_tracer: ContextVar[Tracer | None] = ContextVar("agentlightning_active_tracer", default=None)


def set_active_tracer(tracer: Tracer) -> None:
    """Makes `tracer` the one that emitters of this context use.

    Raises:
        ValueError: if this context has an active tracer already.
    """
    if _active_tracer.get() is not None:
        raise ValueError("An active tracer is already set. Clear it with clear_active_tracer() first.")
    _active_tracer.set(tracer)


def clear_active_tracer() -> None:
    """Leaves this context without an active tracer."""
    _active_tracer.set(None)


def get_active_tracer() -> Tracer | None:
    """The tracer that emitters of this context use, if there is one."""
    return _active_tracer.get()


@contextmanager
def activated(tracer: Tracer) -> Iterator[None]:
    """Makes `tracer` the active one inside, over whichever is."""
    previous = _active_tracer.get()
    _active_tracer.set(tracer)
    try:
        yield
    finally:
        _active_tracer.set(previous)


def with_active_tracer_context(
    method: Callable[..., AbstractAsyncContextManager[T]],
) -> Callable[..., AbstractAsyncContextManager[T]]:
    """Decorates a `trace_context` method so that its tracer is the active one inside the context, and
    whichever was active before is afterwards: rollouts may be nested."""

    @functools.wraps(method)
    def wrapped(self: Tracer, *args: Any, **kwargs: Any) -> AbstractAsyncContextManager[T]:
        @asynccontextmanager
        async def context() -> AsyncIterator[T]:
            with activated(self):
                async with method(self, *args, **kwargs) as inner:
                    yield inner

        return context()

    return wrapped


class Tracer(ParallelWorkerBase):
    """Records what happens inside a context as spans.

    A tracer is set up once (`init`), then once per worker (`init_worker`), and used through `trace_context`.
    """

    _store: LightningStore | None = None

    def init_worker(self, worker_id: int, store: LightningStore | None = None) -> None:
        """Prepares this worker; spans of its trace contexts go to `store`."""
        super().init_worker(worker_id)
        self._store = store

    def trace_context(
        self,
        name: str | None = None,
        *,
        store: LightningStore | None = None,
        rollout_id: str | None = None,
        attempt_id: str | None = None,
    ) -> AbstractAsyncContextManager[Any]:
        """An async context inside which spans are recorded under a rollout and an attempt.

        Args:
            name: A name for the trace, where the tracer has a use for one.
            store: Deprecated; give it to `init_worker`.
            rollout_id: The rollout that the spans belong to.
            attempt_id: The attempt that the spans belong to.
        """
        raise NotImplementedError()

    def _trace_context_sync(self, name: str | None = None, **kwargs: Any) -> AbstractContextManager[Any]:
        raise NotImplementedError()

    def get_last_trace(self) -> list[Span]:
        """The spans of the trace context that is open in this context, or else was open last."""
        raise NotImplementedError()

    def trace_run(self, func: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Calls a function inside a synchronous trace context named after it, where the tracer has such a
        context."""
        with self._trace_context_sync(name=func.__name__):
            return func(*args, **kwargs)

    async def trace_run_async(self, func: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any) -> T:
        """Awaits an async function inside a trace context named after it."""
        async with self.trace_context(name=func.__name__):
            return await func(*args, **kwargs)

    def create_span(
        self,
        name: str,
        attributes: Attributes | None = None,
        timestamp: float | None = None,
        status: TraceStatus | None = None,
    ) -> SpanCoreFields:
        """Records a span that starts and ends at `timestamp` (seconds; now by default)."""
        raise NotImplementedError()

    def operation_context(
        self,
        name: str,
        attributes: Attributes | None = None,
        start_time: float | None = None,
        end_time: float | None = None,
    ) -> AbstractContextManager[SpanRecordingContext]:
        """A context recorded as one span, with the spans made inside it as its children."""
        raise NotImplementedError()

    def get_langchain_handler(self, tags: Sequence[str] | None = None) -> Any:
        """A callback handler that records what LangChain does in the trace that is open; a warning and None
        where LangChain is not installed.

        Tracers that record through `agentlightning.instrumentation` add it to every run by themselves; to
        pass it as a callback, too, changes nothing. `tags` are ignored.
        """
        try:
            from agentlightning.instrumentation.langchain import handler
        except ImportError as error:
            logger.warning("There is no LangChain callback handler without langchain-core: %s", error)
            return None
        return handler

    def get_langchain_callback_handler(self, tags: Sequence[str] | None = None) -> Any:
        """Another name for `get_langchain_handler`."""
        return self.get_langchain_handler(tags)

    @contextmanager
    def lifespan(self, store: LightningStore | None = None) -> Iterator[Tracer]:
        """Sets the tracer up as worker 0 and tears down afterwards what was set up."""
        self.init()
        try:
            self.init_worker(0, store)
            try:
                yield self
            finally:
                self.teardown_worker(0)
        finally:
            self.teardown()
