"""`OtelTracer`: records spans with OpenTelemetry and takes them to the store in the background."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import itertools
import logging
import os
import random
import threading
import warnings
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakSet

from opentelemetry import context as otel_context
from opentelemetry import trace as trace_api
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace import Span as SdkSpan
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from agentlightning.semconv import LightningResourceAttributes
from agentlightning.tracer.base import Tracer, activated, with_active_tracer_context
from agentlightning.tracer.normalizing import normalize
from agentlightning.types import Span, SpanCoreFields, TraceStatus

if TYPE_CHECKING:
    from agentlightning.store.base import LightningStore
    from agentlightning.types import Attributes, StatusCode

logger = logging.getLogger(__name__)

FLUSH_TIMEOUT_SECONDS = 60.0
"""How long the end of a trace waits for a store that can't be reached before its last spans are given up."""
MAX_PENDING_SPANS = 4096
"""How many spans of one trace may wait for the store before the agent is made to wait, too."""
MAX_BATCH = 256
"""How many spans go to the store in one call."""
LINGER_SECONDS = 0.02
"""How long the first span of a batch waits for others."""
_MAX_TRIES = 4
"""How often a batch is offered to a store that answers with an error of its own."""
_TRACER_NAME = "agentlightning.tracer.otel"


class _Record:
    """A span that has ended in a trace, and its form in the store once it has one."""

    __slots__ = ("calls", "readable", "span")

    def __init__(self, readable: ReadableSpan, calls: list[dict[str, Any]] | None = None) -> None:
        self.readable = readable
        self.calls = calls
        self.span: Span | None = None


class Loss(NamedTuple):
    """What became of the spans of a trace."""

    lost: int
    """How many could not be stored."""
    total: int
    """How many there were."""
    error: BaseException | None
    """What the store said last."""


class TraceSession:
    """One open trace context: whose spans they are, those that have ended, and those still to be stored."""

    def __init__(
        self, provider: TracerProvider, store: LightningStore | None, rollout_id: str, attempt_id: str
    ) -> None:
        self.tracer_provider = provider
        self.store = store
        self.rollout_id = rollout_id
        self.attempt_id = attempt_id
        self.trace_id = random.SystemRandom().getrandbits(128) or 1
        self.closed = False
        self._records: list[_Record] = []
        self._pending: deque[_Record] = deque()
        self._changed = threading.Condition()
        self._closers: list[Callable[[], None]] = []
        self._lost = 0
        self._last_error: BaseException | None = None
        # By span id: the parents of spans, the model calls recorded inside of spans, and the calls' own.
        self._parents: dict[int, int] = {}
        self._calls_inside: dict[int, list[dict[str, Any]]] = {}
        self._calls: dict[int, dict[str, Any]] = {}
        self._answered: set[str] = set()
        self._conversations: dict[str, list[Any]] = {}
        self._is_draining = False
        # Only touched on the processor's loop.
        self._drain: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()

    def add_closer(self, closer: Callable[[], None]) -> None:
        """Registers what must happen before the trace closes, such as ending a span that nobody else will
        end."""
        with self._changed:
            self._closers.append(closer)

    def remove_closer(self, closer: Callable[[], None]) -> None:
        """Takes back `add_closer`."""
        with self._changed:
            if closer in self._closers:
                self._closers.remove(closer)

    def run_closers(self) -> None:
        """Does what must happen before the trace closes."""
        with self._changed:
            closers, self._closers = self._closers, []
        for closer in closers:
            try:
                closer()
            except Exception:
                logger.exception("Could not end a span that was open when its trace ended.")

    # Model calls, which other instrumentations around ours may see, too

    def begin_call(self, span: trace_api.Span, attributes: Mapping[str, Any]) -> None:
        """Notes that a span is a model call that we record ourselves."""
        call = dict(attributes)
        with self._changed:
            span_id = span.get_span_context().span_id
            self._calls[span_id] = call
            parent = self._parents.get(span_id)
            while parent is not None:
                self._calls_inside.setdefault(parent, []).append(call)
                parent = self._parents.get(parent)

    def end_call(self, span: trace_api.Span, attributes: dict[str, Any]) -> None:
        """Notes what a call has come to."""
        with self._changed:
            call = self._calls.get(span.get_span_context().span_id)
            if call is not None:
                call.update(attributes)
            if attributes.get("gen_ai.response.id"):
                self._answered.add(attributes["gen_ai.response.id"])

    def has_calls_inside(self, span: trace_api.Span) -> bool:
        """Whether we have recorded a model call inside of a span that is still open."""
        with self._changed:
            return bool(self._calls_inside.get(span.get_span_context().span_id))

    def is_inside(self, inner: trace_api.Span, outer: trace_api.Span) -> bool:
        """Whether a span is another one or inside of it."""
        span_id: int | None = inner.get_span_context().span_id
        outer_id = outer.get_span_context().span_id
        with self._changed:
            while span_id is not None and span_id != outer_id:
                span_id = self._parents.get(span_id)
        return span_id == outer_id

    def remember(self, response_id: str, messages: list[Any]) -> None:
        """Keeps the conversation up to a response, which later requests may refer to by its id alone."""
        with self._changed:
            self._conversations[response_id] = messages

    def recall(self, response_id: str) -> list[Any]:
        """The conversation up to a response of this trace; empty if it is unknown."""
        with self._changed:
            return self._conversations.get(response_id, [])

    def start(self, span_id: int, parent_id: int | None) -> None:
        """Notes that a span has started."""
        if parent_id is not None:
            with self._changed:
                self._parents[span_id] = parent_id

    def append(self, readable: ReadableSpan, *, may_wait: bool) -> bool:
        """Takes a span in and says whether its way to the store is to be started. Waits for room where
        `may_wait`."""
        span_id = readable.context.span_id if readable.context is not None else 0
        record = _Record(readable)
        with self._changed:
            if span_id not in self._calls:
                record.calls = self._calls_inside.pop(span_id, [])
            if self.closed:
                logger.debug("Span %r ended after its trace and is not recorded.", readable.name)
                return False
            self._records.append(record)
            if self.store is None:
                return False
            try:
                # Here rather than on the processor's thread, which is to make as few objects as it can.
                self._convert(record, len(self._records))
            except Exception:
                # It is tried again there, and counted as lost.
                logger.debug("Span %r has no form that can be stored.", readable.name, exc_info=True)
            if may_wait:
                self._changed.wait_for(lambda: len(self._pending) < MAX_PENDING_SPANS, timeout=10.0)
            if len(self._pending) >= MAX_PENDING_SPANS:
                self._lost += 1
                return False
            self._pending.append(record)
            is_first, self._is_draining = not self._is_draining, True
            return is_first

    def is_empty(self) -> bool:
        """Whether nothing was recorded."""
        with self._changed:
            return not self._records and not self._lost

    def spans(self) -> list[Span]:
        """The spans that have ended, in that order. Those not stored yet have provisional sequence ids."""
        with self._changed:
            records = list(self._records)
        return [self._convert(record, index) for index, record in enumerate(records)]

    def _convert(self, record: _Record, sequence_id: int) -> Span:
        if record.span is None:
            span = Span.from_opentelemetry(record.readable, self.rollout_id, self.attempt_id, sequence_id)
            if record.calls is not None:
                try:
                    normalize(span, record.calls, self._answered)
                except Exception:
                    # It is stored as it is.
                    logger.exception("Span %r could not be read.", span.name)
            if self.store is not None:
                span.resource.attributes = {
                    **span.resource.attributes,
                    LightningResourceAttributes.ROLLOUT_ID.value: self.rollout_id,
                    LightningResourceAttributes.ATTEMPT_ID.value: self.attempt_id,
                }
            record.span = span
        return record.span

    def after_fork(self) -> None:
        """Makes a copy in a forked process go on by itself; what is pending is the parent's to store."""
        self._changed = threading.Condition()
        self._pending.clear()
        self._is_draining = False
        self._drain = None
        self._hurry = asyncio.Event()

    # What follows runs on the processor's loop.

    def start_draining(self) -> None:
        """Makes sure that what is pending is on its way to the store."""
        if self._drain is None or self._drain.done():
            self._drain = asyncio.get_running_loop().create_task(self._drain_pending())

    async def flush(self, timeout: float) -> Loss:
        """Waits until everything has been stored, gives up what has not been after `timeout` seconds, and
        says how much that is."""
        self._hurry.set()
        if self._pending:
            self.start_draining()
        if self._drain is not None:
            # `wait` rather than `wait_for`: the batch under way is only given up when the time is.
            await asyncio.wait([self._drain], timeout=timeout)
            if not self._drain.done():
                self._drain.cancel()
                await asyncio.wait([self._drain], timeout=1.0)
        with self._changed:
            lost = self._lost + len(self._pending)
            self._pending.clear()
            total = len(self._records)
        if lost:
            logger.error(
                "%d of %d spans of attempt %s of rollout %s could not be stored. Last error: %r",
                lost,
                total,
                self.attempt_id,
                self.rollout_id,
                self._last_error,
            )
        return Loss(lost, total, self._last_error)

    async def _drain_pending(self) -> None:
        while True:
            if not self._hurry.is_set():
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._hurry.wait(), LINGER_SECONDS)
            with self._changed:
                batch = list(itertools.islice(self._pending, MAX_BATCH))
                self._is_draining = bool(batch)
            if not batch:
                return
            await self._store_batch(batch)
            with self._changed:
                for _ in batch:
                    self._pending.popleft()
                self._changed.notify_all()

    async def _store_batch(self, batch: list[_Record]) -> None:
        """Stores a batch, whatever it takes short of the flush's time being up."""
        assert self.store is not None
        delay, tries = 0.1, 0
        while True:
            try:
                spans = [self._convert(record, index) for index, record in enumerate(batch)]
                stored = await _submit(self.store, self.rollout_id, self.attempt_id, batch, spans)
            except (ValueError, TypeError, NotImplementedError) as exc:
                # The store will not take this, ever. One odd span must not cost its neighbours.
                self._last_error = exc
                if len(batch) == 1:
                    self._lose(1)
                else:
                    for record in batch:
                        await self._store_batch([record])
                return
            except Exception as exc:
                self._last_error = exc
                # A store that can't be reached (an OSError) may be back any moment; storing twice stores
                # once.
                if not isinstance(exc, OSError):
                    tries += 1
                    if tries >= _MAX_TRIES:
                        self._lose(len(batch))
                        return
                await asyncio.sleep(delay)
                delay = min(delay * 2, 2.0)
            else:
                self._settle(batch, stored)
                return

    def _lose(self, count: int) -> None:
        """Counts spans that are given up; so does `append`, on the agent's threads."""
        with self._changed:
            self._lost += count

    def _settle(self, batch: list[_Record], stored: Sequence[Span]) -> None:
        """Puts what the store has made of a batch in place of what was handed to it."""
        by_id = {span.span_id: span for span in stored}
        duplicates: set[int] = set()
        for record in batch:
            span = by_id.get(record.span.span_id) if record.span is not None else None
            if span is None:
                duplicates.add(id(record))
            else:
                record.span = span
        if duplicates:
            with self._changed:
                self._records = [record for record in self._records if id(record) not in duplicates]


async def _submit(
    store: LightningStore, rollout_id: str, attempt_id: str, batch: list[_Record], spans: list[Span]
) -> Sequence[Span]:
    """Stores spans under sequence ids that the store issues in this order, and returns those that were
    new."""
    from agentlightning.store.base import LightningStore

    try:
        if _appends(store):
            return await store.append_spans(spans)
        return await LightningStore.append_spans(store, spans)
    except NotImplementedError:
        # A store of somebody's own that only takes spans one at a time.
        stored: list[Span] = []
        for record in batch:
            added = await store.add_otel_span(rollout_id, attempt_id, record.readable)
            if added is not None:
                stored.append(added)
        return stored


def _appends(store: LightningStore) -> bool:
    """Whether a store issues sequence ids as it stores, and nobody has put something of their own in
    between."""
    if "add_many_spans" in vars(store):
        return False
    for cls in type(store).__mro__:
        if "append_spans" in vars(cls):
            return True
        if "add_many_spans" in vars(cls):
            return False
    return False


# Which trace the code that runs in this context belongs to.
_session: ContextVar[TraceSession | None] = ContextVar("agentlightning_trace_session", default=None)
# The trace that was opened last in this context, for get_last_trace().
_last_session: ContextVar[TraceSession | None] = ContextVar("agentlightning_last_trace_session", default=None)


def current_session() -> TraceSession | None:
    """The trace that is open in this context."""
    return _session.get()


class _SessionIdGenerator(RandomIdGenerator):
    """Gives all spans of one trace context one trace id, also those without a parent."""

    def generate_trace_id(self) -> int:
        session = _session.get()
        return super().generate_trace_id() if session is None else session.trace_id


_NO_LOSS = Loss(0, 0, None)


class LightningSpanProcessor(SpanProcessor):
    """Hands each span to the trace that it was started in.

    What has to be stored is taken to the store by one thread with its own event loop, which starts when it
    is first needed. A span started outside of every trace is none of our business.
    """

    def __init__(self, disable_store_submission: bool = False) -> None:
        self.disable_store_submission = disable_store_submission
        self._sessions: dict[int, TraceSession] = {}
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread: threading.Thread | None = None
        self._pid = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("A LightningSpanProcessor can't be pickled: it belongs to its process.")

    def __deepcopy__(self, memo: dict[int, Any]) -> LightningSpanProcessor:
        return self

    def on_start(self, span: SdkSpan, parent_context: otel_context.Context | None = None) -> None:
        """Notes which trace the span belongs to: the one open here, or else its parent's."""
        context = span.get_span_context()
        if context is None:
            return
        session = _session.get()
        if session is None:
            parent = trace_api.get_current_span(parent_context).get_span_context()
            session = self._sessions.get(parent.span_id)
        if session is not None and not session.closed:
            self._sessions[context.span_id] = session
            session.start(context.span_id, span.parent.span_id if span.parent is not None else None)

    def on_end(self, span: ReadableSpan) -> None:
        """Hands the span to its trace. Never raises."""
        context = span.context
        if context is None or not context.trace_flags.sampled:
            return
        session = self._sessions.pop(context.span_id, None)
        if session is None:
            return
        on_own_thread = threading.current_thread() is self._loop_thread
        if session.append(span, may_wait=not on_own_thread) and not self.disable_store_submission:
            # An interpreter that is ending starts no threads any more; the flush takes care of what is left.
            with suppress(RuntimeError):
                self._ensure_loop().call_soon_threadsafe(session.start_draining)

    def forget(self, session: TraceSession) -> None:
        """Lets go of the spans of a closed trace that have not ended."""
        for span_id in [key for key, value in list(self._sessions.items()) if value is session]:
            self._sessions.pop(span_id, None)

    async def flush(self, session: TraceSession, timeout: float) -> Loss:
        """Waits until the spans of a trace have been stored; see `TraceSession.flush`."""
        if session.store is None or session.is_empty():
            return _NO_LOSS
        future = asyncio.run_coroutine_threadsafe(session.flush(timeout), self._ensure_loop())
        return await asyncio.wrap_future(future)

    def flush_sync(self, session: TraceSession, timeout: float) -> Loss:
        """`flush`, for code that is not async."""
        if session.store is None or session.is_empty():
            return _NO_LOSS
        try:
            loop = self._ensure_loop()
        except RuntimeError:
            # An interpreter that is ending starts no threads any more.
            return asyncio.run(session.flush(timeout))
        return asyncio.run_coroutine_threadsafe(session.flush(timeout), loop).result()

    def _ensure_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._pid != os.getpid():
                # After a fork the loop is here, but not the thread that runs it.
                self._loop, self._loop_thread, self._pid = None, None, os.getpid()
            if self._loop is None:
                loop = asyncio.new_event_loop()
                thread = threading.Thread(target=_run_loop, args=(loop,), name="otel-loop", daemon=True)
                try:
                    # Not in the trace of whoever happens to be first.
                    contextvars.Context().run(thread.start)
                except RuntimeError:
                    loop.close()
                    raise
                self._loop, self._loop_thread = loop, thread
            return self._loop

    def shutdown(self) -> None:
        """Ends the thread, if there is one."""
        with self._lock:
            loop, thread = self._loop, self._loop_thread
            self._loop, self._loop_thread = None, None
        if loop is None or thread is None or self._pid != os.getpid():
            return
        loop.call_soon_threadsafe(loop.stop)
        if thread is not threading.current_thread():
            thread.join(timeout=5.0)

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Traces are flushed when they end."""
        return True


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    collecting = _collect_without_loop(threading.current_thread(), loop)
    gc.callbacks.append(collecting)
    try:
        loop.run_forever()
    finally:
        gc.callbacks.remove(collecting)
        loop.close()


def _collect_without_loop(
    thread: threading.Thread, loop: asyncio.AbstractEventLoop
) -> Callable[[str, dict[str, int]], None]:
    """Hides our loop from finalizers of the agent's objects when they happen to be collected on our thread.

    SDKs close their clients on whatever loop they find running there, and ours is none of theirs: the sockets
    belong to another, which must not be touched from here.
    """

    def collecting(phase: str, info: dict[str, int]) -> None:
        if threading.current_thread() is thread and loop.is_running():
            asyncio._set_running_loop(None if phase == "start" else loop)

    return collecting


class OtelSpanRecordingContext:
    """Records one operation into an OpenTelemetry span."""

    def __init__(self, span: SdkSpan) -> None:
        self._span = span

    def record_exception(self, exception: BaseException) -> None:
        """Adds the exception as an event and makes the status ERROR."""
        self._span.record_exception(exception)
        self.record_status("ERROR", str(exception))

    def record_attributes(self, attributes: Attributes) -> None:
        """Adds attributes, overwriting those of the same name."""
        self._span.set_attributes(attributes)

    def record_status(self, status_code: StatusCode, description: str | None = None) -> None:
        """Replaces the status."""
        _set_status(self._span, TraceStatus(status_code=status_code, description=description))

    def get_recorded_span(self) -> SpanCoreFields:
        """The span as it stands."""
        return _core_fields(self._span)


def _set_status(span: trace_api.Span, status: TraceStatus) -> None:
    code = trace_api.StatusCode[status.status_code]
    # OpenTelemetry wants a description with errors only, and logs a warning otherwise.
    description = status.description if code is trace_api.StatusCode.ERROR else None
    span.set_status(trace_api.Status(code, description))


def _core_fields(span: ReadableSpan) -> SpanCoreFields:
    return SpanCoreFields(
        name=span.name,
        status=TraceStatus.from_opentelemetry(span.status),
        attributes=dict(span.attributes or {}),
        start_time=None if span.start_time is None else span.start_time / 1e9,
        end_time=None if span.end_time is None else span.end_time / 1e9,
    )


def _nanoseconds(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds * 1_000_000_000)


_setup = threading.Lock()


@cache
def _opentelemetry() -> tuple[LightningSpanProcessor, TracerProvider]:
    """Our own processor and provider: one of each for the whole process, since traces are told apart by
    context."""
    processor = LightningSpanProcessor()
    provider = TracerProvider(
        sampler=ALWAYS_ON,
        id_generator=_SessionIdGenerator(),
        # A conversation has more attributes than the 128 that a span may have by default.
        span_limits=SpanLimits(
            max_attributes=SpanLimits.UNSET,
            max_span_attributes=SpanLimits.UNSET,
            max_event_attributes=SpanLimits.UNSET,
            max_link_attributes=SpanLimits.UNSET,
            max_events=SpanLimits.UNSET,
            max_links=SpanLimits.UNSET,
            max_attribute_length=SpanLimits.UNSET,
            max_span_attribute_length=SpanLimits.UNSET,
        ),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(processor)
    return processor, provider


def shared_provider() -> TracerProvider:
    """The provider that all our tracers share. What is started outside of a trace is not recorded."""
    return _opentelemetry()[1]


_joined: WeakSet[TracerProvider] = WeakSet()


def _join_global_provider(provider: TracerProvider, processor: LightningSpanProcessor) -> None:
    """Sees to it that spans of the global provider are recorded, too: the user's, whenever they set one, or
    ours until then."""
    existing = trace_api.get_tracer_provider()
    if isinstance(existing, trace_api.ProxyTracerProvider):
        _lend(provider, processor)
    else:
        join_provider(existing, processor)


def join_provider(provider: Any, processor: LightningSpanProcessor | None = None) -> None:
    """Has the spans of somebody else's provider recorded, beside whatever else happens to them."""
    own_processor, own_provider = _opentelemetry()
    if isinstance(provider, TracerProvider) and provider is not own_provider and provider not in _joined:
        provider.add_span_processor(processor or own_processor)
        _joined.add(provider)


def _lend(provider: TracerProvider, processor: LightningSpanProcessor) -> None:
    """Makes our provider the global one until somebody sets theirs.

    `set_tracer_provider` may be called once in a process, and that once is the user's.
    """
    set_provider = getattr(trace_api, "_set_tracer_provider", None)
    if set_provider is None or not hasattr(trace_api, "_TRACER_PROVIDER"):
        trace_api.set_tracer_provider(provider)
        return

    def set_and_join(tracer_provider: Any, *args: Any, **kwargs: Any) -> Any:
        result = set_provider(tracer_provider, *args, **kwargs)
        join_provider(trace_api.get_tracer_provider(), processor)
        return result

    trace_api._TRACER_PROVIDER = provider
    trace_api._set_tracer_provider = set_and_join


@cache
def _tracer_of(provider: TracerProvider) -> trace_api.Tracer:
    return provider.get_tracer(_TRACER_NAME)


class OtelTracer(Tracer):
    """Records what OpenTelemetry sees inside a trace context, and takes it to the store.

    Calls of the OpenAI SDK are recorded, too, with their token ids where the model server gives any.

    The tracer has an OpenTelemetry provider of its own, which becomes the process's global one only where
    there is none. Where the user has one, its spans are recorded beside whatever else happens to them. One
    tracer serves any number of trace contexts at once, in tasks and threads.
    """

    def __init__(self, *, instrument: bool = True, flush_timeout: float = FLUSH_TIMEOUT_SECONDS) -> None:
        """Makes a tracer, which does nothing until `init_worker`.

        Args:
            instrument: Whether calls of models, and what agent frameworks do, are recorded; see
                `agentlightning.instrumentation`.
            flush_timeout: Seconds that the end of a trace waits for a store that can't be reached.
        """
        super().__init__()
        self.instrument = instrument
        self.flush_timeout = flush_timeout
        self._tracer_provider: TracerProvider | None = None
        self._lightning_span_processor: LightningSpanProcessor | None = None
        self._instrumented = False
        self._latest: TraceSession | None = None
        self._loss = _NO_LOSS

    def __getstate__(self) -> dict[str, Any]:
        # What it has set up belongs to this process; a copy elsewhere starts afresh. Attributes of subclasses
        # go along.
        return {
            **self.__dict__,
            "worker_id": None,
            "_store": None,
            "_tracer_provider": None,
            "_lightning_span_processor": None,
            "_instrumented": False,
            "_latest": None,
            "_loss": _NO_LOSS,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __copy__(self) -> OtelTracer:
        # Copies for further workers of this process share the provider, which tells traces apart by context.
        copied = type(self).__new__(type(self))
        copied.__dict__.update(self.__dict__)
        copied._instrumented = False
        copied._loss = _NO_LOSS
        return copied

    def init_worker(self, worker_id: int, store: LightningStore | None = None) -> None:
        """Sets OpenTelemetry up, the first time, and has what the agent does through other packages
        recorded."""
        super().init_worker(worker_id, store)
        with _setup:
            # Workers of one process start side by side.
            self._lightning_span_processor, self._tracer_provider = _opentelemetry()
            _join_global_provider(self._tracer_provider, self._lightning_span_processor)
        if self.instrument and not self._instrumented:
            from agentlightning import instrumentation

            instrumentation.instrument_all()
            self._instrumented = True

    def teardown_worker(self, worker_id: int, *args: Any, **kwargs: Any) -> None:
        """Leaves other packages as they were, and reports what could not be stored. OpenTelemetry stays set
        up."""
        super().teardown_worker(worker_id, *args, **kwargs)
        lost, total, error = self._loss
        self._loss = _NO_LOSS
        if lost:
            logger.error(
                "%d of %d spans of this worker could not be stored. Last error: %r", lost, total, error
            )
        if self._instrumented:
            from agentlightning import instrumentation

            instrumentation.uninstrument_all()
            self._instrumented = False

    def _provider(self) -> TracerProvider:
        if self._tracer_provider is None:
            raise RuntimeError("OtelTracer is not initialized. Call init_worker() first.")
        return self._tracer_provider

    def _tracer(self) -> trace_api.Tracer:
        return _tracer_of(self._provider())

    @with_active_tracer_context
    @asynccontextmanager
    async def trace_context(
        self,
        name: str | None = None,
        *,
        store: LightningStore | None = None,
        rollout_id: str | None = None,
        attempt_id: str | None = None,
    ) -> AsyncIterator[trace_api.Tracer]:
        """Records spans under a rollout and an attempt, or, without ids, for `get_last_trace` only.

        No span is made for the context itself. When it ends, everything recorded has been stored, or given
        up with a log line; the store's errors never surface here.

        Args:
            name: Ignored.
            store: Deprecated; give it to `init_worker`.
            rollout_id: The rollout that the spans belong to.
            attempt_id: The attempt that the spans belong to.

        Raises:
            RuntimeError: before `init_worker`.
            ValueError: for one id without the other, or ids without a store.
        """
        session, processor = self._session(store, rollout_id, attempt_id)
        try:
            with self._opened(session, processor), self._root(name or rollout_id):
                yield self._tracer()
        finally:
            self._account(await processor.flush(session, self.flush_timeout))

    @contextmanager
    def _trace_context_sync(self, name: str | None = None, **kwargs: Any) -> Iterator[trace_api.Tracer]:
        """`trace_context` for code that is not async, in a thread without a running event loop."""
        session, processor = self._session(
            kwargs.get("store"), kwargs.get("rollout_id"), kwargs.get("attempt_id")
        )
        root = name or kwargs.get("rollout_id")
        try:
            with activated(self), self._opened(session, processor), self._root(root):
                yield self._tracer()
        finally:
            self._account(processor.flush_sync(session, self.flush_timeout))

    def _account(self, loss: Loss) -> None:
        """Adds to what is reported at the end."""
        with _setup:
            before = self._loss
            self._loss = Loss(before.lost + loss.lost, before.total + loss.total, loss.error or before.error)

    def _root(self, name: str | None) -> AbstractContextManager[None]:
        """Around everything in a trace; for tracers that have a span there."""
        return nullcontext()

    def _session(
        self, store: LightningStore | None, rollout_id: str | None, attempt_id: str | None
    ) -> tuple[TraceSession, LightningSpanProcessor]:
        provider = self._provider()
        processor = self._lightning_span_processor
        assert processor is not None
        if store is not None:
            warnings.warn(
                "Passing `store` to trace_context() is deprecated. Give it to init_worker().",
                DeprecationWarning,
                stacklevel=5,
            )
        else:
            store = self._store
        if (rollout_id is None) != (attempt_id is None):
            raise ValueError("rollout_id and attempt_id must be given together, or not at all.")
        if rollout_id is None or attempt_id is None:
            return TraceSession(provider, None, "rollout-dummy", "attempt-dummy"), processor
        if store is None:
            raise ValueError("A store is required to record a rollout. Give one to init_worker().")
        return TraceSession(provider, store, rollout_id, attempt_id), processor

    @contextmanager
    def _opened(self, session: TraceSession, processor: LightningSpanProcessor) -> Iterator[None]:
        """Makes a trace the one that is open in this context."""
        previous = _session.get()
        _session.set(session)
        _last_session.set(session)
        self._latest = session
        # Whatever span is open around us is not part of this trace.
        token = otel_context.attach(trace_api.set_span_in_context(trace_api.INVALID_SPAN))
        try:
            yield
        finally:
            otel_context.detach(token)
            session.run_closers()
            _session.set(previous)
            session.closed = True
            processor.forget(session)

    def get_last_trace(self) -> list[Span]:
        """The spans, in order of their end, of the trace that is open in this context, or was open last."""
        self._provider()
        session = _session.get() or _last_session.get() or self._latest
        return [] if session is None else session.spans()

    def create_span(
        self,
        name: str,
        attributes: Attributes | None = None,
        timestamp: float | None = None,
        status: TraceStatus | None = None,
    ) -> SpanCoreFields:
        """Records a span that starts and ends at `timestamp` (seconds; now by default)."""
        moment = _nanoseconds(timestamp)
        span = self._tracer().start_span(name, attributes=attributes, start_time=moment)
        if status is not None:
            _set_status(span, status)
        assert isinstance(span, ReadableSpan)
        # Without an explicit end, the span would take longer than the moment that it stands for.
        span.end(end_time=span.start_time)
        return _core_fields(span)

    @contextmanager
    def operation_context(
        self,
        name: str,
        attributes: Attributes | None = None,
        start_time: float | None = None,
        end_time: float | None = None,
    ) -> Iterator[OtelSpanRecordingContext]:
        """Records the block as a span, with the spans made inside it as its children.

        An `Exception` makes the status ERROR and goes on its way. `end_time` is not supported.
        """
        if end_time is not None:
            logger.warning("OtelTracer does not support end_time; the operation ends when its block does.")
        with self._tracer().start_as_current_span(
            name,
            attributes=attributes,
            start_time=_nanoseconds(start_time),
        ) as span:
            assert isinstance(span, SdkSpan)
            yield OtelSpanRecordingContext(span)
