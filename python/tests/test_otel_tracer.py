"""What `OtelTracer` takes to the store, for whom, and that none of its troubles become the agent's."""

from __future__ import annotations

import asyncio
import logging
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from opentelemetry import trace as trace_api
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider

from agentlightning.emitter import emit_message, emit_reward, get_message_value, operation
from agentlightning.semconv import LightningResourceAttributes
from agentlightning.store import InMemoryLightningStore
from agentlightning.store.errors import StoreUnavailableError
from agentlightning.tracer import OtelTracer, get_active_tracer, otel, set_active_tracer


@pytest.fixture
def store() -> InMemoryLightningStore:
    return InMemoryLightningStore()


@pytest.fixture
def tracer(store: InMemoryLightningStore) -> Any:
    tracer = OtelTracer(flush_timeout=5.0)
    with tracer.lifespan(store):
        yield tracer


async def _ids(store: InMemoryLightningStore) -> dict[str, str]:
    rollout = await store.start_rollout(input="x")
    return {"rollout_id": rollout.rollout_id, "attempt_id": rollout.attempt.attempt_id}


async def test_a_lone_reward_is_the_only_span(tracer: OtelTracer, store: InMemoryLightningStore) -> None:
    ids = await _ids(store)
    async with tracer.trace_context("name", **ids):
        assert get_active_tracer() is tracer
        emit_reward(0.5)
    assert get_active_tracer() is None
    (span,) = await store.query_spans(**ids)
    assert span.name == "agentlightning.annotation"
    assert span.sequence_id == 1
    assert span.parent_id is None
    assert span.start_time == span.end_time
    assert span.resource.attributes[LightningResourceAttributes.ROLLOUT_ID.value] == ids["rollout_id"]
    assert span.resource.attributes[LightningResourceAttributes.ATTEMPT_ID.value] == ids["attempt_id"]
    assert [span.span_id for span in tracer.get_last_trace()] == [span.span_id]
    assert tracer.get_last_trace()[0].sequence_id == 1


async def test_order_nesting_and_trace_id(tracer: OtelTracer, store: InMemoryLightningStore) -> None:
    ids = await _ids(store)
    async with tracer.trace_context(**ids):
        with operation(name="outer"):
            emit_message("inner")
        emit_reward(1.0)
    inner, outer, reward = await store.query_spans(**ids)
    # In the order of their ends, which is also what the local trace has.
    assert [inner.name, outer.name, reward.name] == [
        "agentlightning.message",
        "agentlightning.operation",
        "agentlightning.annotation",
    ]
    assert [span.sequence_id for span in (inner, outer, reward)] == [1, 2, 3]
    assert inner.parent_id == outer.span_id
    assert outer.parent_id is None
    assert len({span.trace_id for span in (inner, outer, reward)}) == 1
    assert [span.span_id for span in tracer.get_last_trace()] == [
        inner.span_id,
        outer.span_id,
        reward.span_id,
    ]


async def test_without_ids_the_trace_stays_here(tracer: OtelTracer, store: InMemoryLightningStore) -> None:
    async with tracer.trace_context():
        emit_message("a")
        assert len(tracer.get_last_trace()) == 1
        emit_message("b")
    assert [get_message_value(span) for span in tracer.get_last_trace()] == ["a", "b"]
    async with tracer.trace_context():
        pass
    assert tracer.get_last_trace() == []


async def test_misuse(tracer: OtelTracer, store: InMemoryLightningStore) -> None:
    with pytest.raises(RuntimeError, match="init_worker"):
        async with OtelTracer().trace_context():
            pass
    with pytest.raises(RuntimeError, match="init_worker"):
        OtelTracer().get_last_trace()
    with pytest.raises(ValueError, match="together"):
        async with tracer.trace_context(rollout_id="r"):
            pass
    storeless = OtelTracer()
    storeless.init_worker(0)
    with pytest.raises(ValueError, match="store is required"):
        async with storeless.trace_context(rollout_id="r", attempt_id="a"):
            pass
    ids = await _ids(store)
    with pytest.warns(DeprecationWarning, match="init_worker"):
        async with storeless.trace_context(store=store, **ids):
            emit_reward(1.0)
    storeless.teardown_worker(0)
    assert len(await store.query_spans(**ids)) == 1
    async with tracer.trace_context():
        with pytest.raises(ValueError, match="already set"):
            set_active_tracer(tracer)
    assert get_active_tracer() is None


async def test_timestamps_and_status(tracer: OtelTracer) -> None:
    async with tracer.trace_context():
        span = tracer.create_span("x", timestamp=2000.123)
        assert span.start_time == pytest.approx(2000.123)
        assert span.end_time == pytest.approx(2000.123)
        assert span.status.status_code == "UNSET"
        with pytest.raises(ValueError, match="boom"), operation(name="fails"):
            raise ValueError("boom")
    failed = tracer.get_last_trace()[-1]
    assert failed.status.status_code == "ERROR"
    assert "boom" in (failed.status.description or "")
    assert failed.events[0].name == "exception"
    assert tracer.get_last_trace()[0].start_time == pytest.approx(2000.123)


async def test_long_conversations_keep_all_their_attributes(tracer: OtelTracer) -> None:
    async with tracer.trace_context():
        tracer.create_span("long", attributes={f"gen_ai.prompt.{i}.content": "x" for i in range(500)})
    assert len(tracer.get_last_trace()[0].attributes) == 500


async def test_overlapping_traces_do_not_mix(tracer: OtelTracer, store: InMemoryLightningStore) -> None:
    async def rollout(number: int) -> dict[str, str]:
        ids = await _ids(store)
        async with tracer.trace_context(**ids):
            for step in range(5):
                emit_message(f"{number}.{step}")
                await asyncio.sleep(0.001 * (number % 3))
            # Threads belong to the trace that they were started in.
            await asyncio.to_thread(emit_message, f"{number}.thread")
        return ids

    async def in_own_loop(number: int) -> dict[str, str]:
        return await asyncio.to_thread(asyncio.run, rollout(number))

    everyone = [rollout(number) for number in range(6)] + [in_own_loop(number) for number in range(6, 9)]
    for number, ids in enumerate(await asyncio.gather(*everyone)):
        spans = await store.query_spans(**ids)
        expected = [f"{number}.{step}" for step in range(5)] + [f"{number}.thread"]
        assert [get_message_value(span) for span in spans] == expected
        assert [span.sequence_id for span in spans] == [1, 2, 3, 4, 5, 6]


_SIDE_BY_SIDE = """
import threading
from agentlightning.tracer import OtelTracer

tracers = [OtelTracer() for _ in range(16)]
begin = threading.Barrier(len(tracers))

def work(tracer):
    begin.wait()
    tracer.init_worker(0)

threads = [threading.Thread(target=work, args=(tracer,)) for tracer in tracers]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert len({tracer._lightning_span_processor for tracer in tracers}) == 1
assert len({tracer._tracer_provider for tracer in tracers}) == 1
"""


def test_workers_that_start_side_by_side_share_one_provider() -> None:
    subprocess.run([sys.executable, "-c", _SIDE_BY_SIDE], check=True, timeout=60)


async def test_threads_of_the_agent_belong_to_its_trace(
    tracer: OtelTracer, store: InMemoryLightningStore
) -> None:
    # The pool's thread is started outside of the trace and is used in two of them.
    pool = ThreadPoolExecutor(1)
    pool.submit(int).result()
    both = []
    for _ in range(2):
        ids = await _ids(store)
        async with tracer.trace_context(**ids):
            with operation(name="parent"):
                thread = threading.Thread(target=emit_message, args=("thread",))
                thread.start()
                thread.join()
                pool.submit(emit_message, "pool").result()
        both.append(ids)
    with pytest.raises(RuntimeError, match="No active tracer"):
        pool.submit(emit_message, "outside").result()
    pool.shutdown()
    for ids in both:
        *children, parent = await store.query_spans(**ids)
        assert [get_message_value(span) for span in children] == ["thread", "pool"]
        assert {span.parent_id for span in children} == {parent.span_id}


async def test_patches_of_threads_are_taken_back(store: InMemoryLightningStore) -> None:
    start, submit = threading.Thread.start, ThreadPoolExecutor.submit
    with OtelTracer().lifespan(store):
        assert threading.Thread.start is not start
    assert threading.Thread.start is start
    assert ThreadPoolExecutor.submit is submit


async def test_what_ends_after_its_trace_is_left_out(
    tracer: OtelTracer, store: InMemoryLightningStore
) -> None:
    first, second = await _ids(store), await _ids(store)
    async with tracer.trace_context(**first) as otel:
        late = otel.start_span("late")
    async with tracer.trace_context(**second):
        late.end()
        emit_message("second")
    assert list(await store.query_spans(**first)) == []
    assert [span.name for span in await store.query_spans(**second)] == ["agentlightning.message"]


class _Wrapped(InMemoryLightningStore):
    """A store that fails as told before it does what it should."""

    failures: list[Exception]
    refuse: str | None = None

    def __init__(self, *failures: Exception) -> None:
        super().__init__()
        self.failures = list(failures)

    async def add_many_spans(self, spans: Any) -> Any:
        if self.failures:
            raise self.failures.pop(0)
        if self.refuse is not None and any(get_message_value(span) == self.refuse for span in spans):
            raise ValueError("this one can't be stored")
        return await super().add_many_spans(spans)


async def test_a_store_that_comes_back_gets_everything() -> None:
    store = _Wrapped(*[StoreUnavailableError("away")] * 3, RuntimeError("disk"))
    tracer = OtelTracer()
    with tracer.lifespan(store):
        ids = await _ids(store)
        async with tracer.trace_context(**ids):
            for number in range(10):
                emit_message(str(number))
    spans = await store.query_spans(**ids)
    assert [get_message_value(span) for span in spans] == [str(number) for number in range(10)]


async def test_one_odd_span_does_not_cost_its_neighbours(caplog: pytest.LogCaptureFixture) -> None:
    store = _Wrapped()
    store.refuse = "3"
    tracer = OtelTracer()
    with tracer.lifespan(store):
        ids = await _ids(store)
        async with tracer.trace_context(**ids):
            for number in range(6):
                emit_message(str(number))
    spans = await store.query_spans(**ids)
    assert [get_message_value(span) for span in spans] == ["0", "1", "2", "4", "5"]
    assert "1 of 6 spans" in caplog.text
    # The span is still part of what the agent's hooks see.
    assert len(tracer.get_last_trace()) == 6


async def test_a_store_that_stays_away_costs_time_and_a_log_line(caplog: pytest.LogCaptureFixture) -> None:
    store = _Wrapped(*[StoreUnavailableError("away")] * 1000)
    tracer = OtelTracer(flush_timeout=0.3)
    with tracer.lifespan(store), caplog.at_level(logging.ERROR):
        ids = await _ids(store)
        async with tracer.trace_context(**ids):
            emit_reward(1.0)
    assert "1 of 1 spans" in caplog.text
    assert "away" in caplog.text


async def test_a_store_with_0_3_methods_only() -> None:
    class Old(InMemoryLightningStore):
        async def add_many_spans(self, spans: Any) -> Any:
            raise NotImplementedError

    store = Old()
    tracer = OtelTracer()
    with tracer.lifespan(store):
        ids = await _ids(store)
        async with tracer.trace_context(**ids):
            emit_message("a")
            emit_message("b")
    assert [get_message_value(span) for span in await store.query_spans(**ids)] == ["a", "b"]


async def test_an_exception_in_the_body_leaves_the_trace_stored(
    tracer: OtelTracer, store: InMemoryLightningStore
) -> None:
    ids = await _ids(store)

    async def agent() -> None:
        async with tracer.trace_context(**ids):
            emit_reward(1.0)
            raise KeyError("agent")

    with pytest.raises(KeyError):
        await agent()
    assert len(await store.query_spans(**ids)) == 1
    assert get_active_tracer() is None


async def test_an_enclosing_span_is_no_parent(tracer: OtelTracer, store: InMemoryLightningStore) -> None:
    ids = await _ids(store)
    around = trace_api.NonRecordingSpan(
        trace_api.SpanContext(1, 2, is_remote=False, trace_flags=trace_api.TraceFlags(0))
    )
    with trace_api.use_span(around):
        async with tracer.trace_context(**ids):
            emit_reward(1.0)
        assert trace_api.get_current_span() is around
    (span,) = await store.query_spans(**ids)
    assert span.parent_id is None


_OWN_PROVIDER = """
import asyncio
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from agentlightning.emitter import emit_reward
from agentlightning.tracer import OtelTracer

mine, exporter = TracerProvider(), InMemorySpanExporter()
mine.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(mine)
for _ in range(2):
    OtelTracer().init_worker(0)
tracer = OtelTracer()

async def main():
    with tracer.lifespan():
        with trace.get_tracer("mine").start_as_current_span("outside"):
            async with tracer.trace_context():
                with trace.get_tracer("mine").start_as_current_span("framework"):
                    emit_reward(1.0)
    return tracer.get_last_trace()

spans = asyncio.run(main())
assert trace.get_tracer_provider() is mine
exported = [span.name for span in exporter.get_finished_spans()]
assert exported == ["framework", "outside"], exported
assert [span.name for span in spans] == ["agentlightning.annotation", "framework"], spans
assert spans[0].parent_id == spans[1].span_id
"""


def test_the_user_s_own_provider_goes_on_working() -> None:
    subprocess.run([sys.executable, "-c", _OWN_PROVIDER], check=True, timeout=60)


_NO_PROVIDER = """
import asyncio
from opentelemetry import trace
from agentlightning.tracer import OtelTracer

# Several tracers record a span once.
others = [OtelTracer() for _ in range(2)]
for other in others:
    other.init_worker(0)
tracer = OtelTracer()

async def main():
    with tracer.lifespan():
        async with tracer.trace_context():
            # A framework that only knows the global provider.
            with trace.get_tracer("framework").start_as_current_span("framework"):
                pass
    return tracer.get_last_trace()

assert [span.name for span in asyncio.run(main())] == ["framework"]
"""


def test_frameworks_without_a_provider_are_recorded() -> None:
    subprocess.run([sys.executable, "-c", _NO_PROVIDER], check=True, timeout=60)


async def test_a_number_beyond_64_bits_does_not_cost_the_span(
    tracer: OtelTracer, store: InMemoryLightningStore
) -> None:
    ids = await _ids(store)
    async with tracer.trace_context(**ids):
        tracer.create_span("s", {"n": 2**64, "m": 2**63})
    (span,) = await store.query_spans(**ids)
    assert span.attributes == {"n": str(2**64), "m": 2**63}


class Tagged(OtelTracer):
    def __init__(self, tag: str) -> None:
        super().__init__(flush_timeout=5.0)
        self.tag = tag


def test_a_copy_keeps_what_a_subclass_has_of_its_own(store: InMemoryLightningStore) -> None:
    tracer = Tagged("x")
    with tracer.lifespan(store):
        copy = pickle.loads(pickle.dumps(tracer))
    assert (copy.tag, copy.flush_timeout, copy.worker_id) == ("x", 5.0, None)
    # What is set up belongs to the process.
    with pytest.raises(RuntimeError, match="not initialized"):
        copy.get_last_trace()
    with copy.lifespan(store):
        assert copy.get_last_trace() == []


class _Refusing(InMemoryLightningStore):
    async def get_many_span_sequence_ids(self, rollout_attempt_ids: Any) -> Any:
        raise ValueError("not this one")


async def test_spans_lost_on_two_sides_are_all_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otel, "MAX_PENDING_SPANS", 0)
    session = otel.TraceSession(TracerProvider(), _Refusing(), "r", "a")
    agents: list[threading.Thread] = []

    class Count(int):
        def __add__(self, other: int) -> int:
            # An agent's span finds no room just between the reading and the writing.
            if not agents:
                arguments = {"readable": _readable(), "may_wait": False}
                agents.append(threading.Thread(target=session.append, kwargs=arguments))
                agents[0].start()
                # With the lock held here, it has to wait.
                agents[0].join(0.2)
            return int(self) + other

    session._lost = Count(0)
    await session._store_batch([otel._Record(_readable())])
    for agent in agents:
        agent.join()
    assert session._lost == 2


def _readable() -> ReadableSpan:
    span = TracerProvider().get_tracer("test").start_span("s")
    span.end()
    assert isinstance(span, ReadableSpan)
    return span
