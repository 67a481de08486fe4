"""What a runner does with one attempt, and how the store learns of it."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
from store_server import StoreServer

import agentlightning as agl
import agentlightning.runner.agent as runner_module
from agentlightning.emitter import get_message_value
from agentlightning.execution import ThreadingEvent
from agentlightning.runner import LitAgentRunner
from agentlightning.semconv import AGL_STATE, LightningSpanAttributes
from agentlightning.store import InMemoryLightningStore
from agentlightning.store.errors import StoreUnavailableError
from agentlightning.tracer import OtelTracer, Tracer

EVENT, REASON = LightningSpanAttributes.STATE_EVENT.value, LightningSpanAttributes.STATE_REASON.value


class Agent(agl.LitAgent[Any]):
    """Returns what its function makes of the task."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def validation_rollout(self, task: Any, resources: Any, rollout: Any) -> Any:
        return self.function(task)


class AsyncAgent(agl.LitAgent[Any]):
    """The same, asynchronously."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    async def rollout(self, task: Any, resources: Any, rollout: Any) -> Any:  # type: ignore[override]
        return await self.function(task)


@pytest.fixture
def store() -> InMemoryLightningStore:
    return InMemoryLightningStore()


def _runner(**kwargs: Any) -> LitAgentRunner[Any]:
    return LitAgentRunner[Any](OtelTracer(), **{"heartbeat_interval": 0, "poll_interval": 0.05, **kwargs})


async def _step(store: InMemoryLightningStore, agent: Any, task: Any = "t", **kwargs: Any) -> Any:
    if await store.get_latest_resources() is None:
        await store.add_resources({})
    with _runner().run_context(agent=agent, store=store, hooks=kwargs.pop("hooks", None)) as runner:
        return await runner.step(task, **kwargs)


async def _spans(store: agl.LightningStore, rollout: Any) -> list[Any]:
    """What the agent has left, without the runner's own events."""
    return [span for span in await store.query_spans(rollout.rollout_id) if span.name != AGL_STATE]


async def _states(store: agl.LightningStore, rollout: Any) -> list[str]:
    """The runner's events, with the reasons of failures."""
    spans = [span for span in await store.query_spans(rollout.rollout_id) if span.name == AGL_STATE]
    events = [(span.attributes[EVENT], span.attributes.get(REASON)) for span in spans]
    return [event if reason is None else f"{event} {reason}" for event, reason in events]


class Recorder(agl.Hook):
    """Notes its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, set[str], dict[str, Any]]] = []

    async def on_rollout_start(self, **kwargs: Any) -> None:  # type: ignore[override]
        self.calls.append(("on_rollout_start", set(kwargs), kwargs))

    async def on_trace_start(self, **kwargs: Any) -> None:  # type: ignore[override]
        self.calls.append(("on_trace_start", set(kwargs), kwargs))

    async def on_trace_end(self, **kwargs: Any) -> None:  # type: ignore[override]
        self.calls.append(("on_trace_end", set(kwargs), kwargs))

    async def on_rollout_end(self, **kwargs: Any) -> None:  # type: ignore[override]
        self.calls.append(("on_rollout_end", set(kwargs), kwargs))


async def test_a_returned_float(store: InMemoryLightningStore) -> None:
    hook = Recorder()
    rollout = await _step(store, Agent(lambda task: 0.5), hooks=[hook])
    assert (rollout.status, rollout.mode, rollout.attempt.worker_id) == ("succeeded", None, "Worker-0")
    (span,) = await _spans(store, rollout)
    # The attempt's start is before it, and its end behind.
    assert (span.name, span.sequence_id, span.parent_id) == ("agentlightning.annotation", 2, None)
    assert await _states(store, rollout) == ["started", "finished"]
    assert span.start_time == span.end_time
    assert span.resource.attributes == {}
    base, traced = {"agent", "rollout", "runner"}, {"agent", "rollout", "runner", "tracer"}
    assert [(name, keys) for name, keys, _ in hook.calls] == [
        ("on_rollout_start", base),
        ("on_trace_start", traced),
        ("on_trace_end", traced),
        ("on_rollout_end", base | {"spans"}),
    ]
    assert hook.calls[-1][2]["spans"] == []


async def test_an_emitted_and_a_returned_reward(store: InMemoryLightningStore) -> None:
    def agent(task: Any) -> float:
        agl.emit_reward(1.0)
        return 0.25

    rollout = await _step(store, Agent(agent))
    emitted, returned = await _spans(store, rollout)
    assert [agl.get_reward_value(emitted), agl.get_reward_value(returned)] == [1.0, 0.25]
    assert (emitted.sequence_id, returned.sequence_id) == (2, 3)
    assert emitted.resource.attributes
    assert agl.find_final_reward([emitted, returned]) == 0.25


async def test_none_means_that_everything_has_been_emitted(store: InMemoryLightningStore) -> None:
    async def agent(task: Any) -> None:
        agl.emit_message(task)

    hook = Recorder()
    rollout = await _step(store, AsyncAgent(agent), hooks=[hook])
    assert rollout.status == "succeeded"
    (span,) = await _spans(store, rollout)
    assert [s.span_id for s in hook.calls[-1][2]["spans"]] == [span.span_id]


@pytest.mark.parametrize("value", [True, 1])
async def test_bools_and_ints_are_rewards(
    store: InMemoryLightningStore, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    rollout = await _step(store, Agent(lambda task: value))
    assert agl.find_final_reward(await _spans(store, rollout)) == 1.0
    assert "Reward is not a number" in caplog.text


async def test_returned_spans(store: InMemoryLightningStore, caplog: pytest.LogCaptureFixture) -> None:
    core = agl.SpanCoreFields(
        name="x", status=agl.TraceStatus(status_code="OK"), attributes={}, start_time=1.0, end_time=2.0
    )
    rollout = await _step(store, Agent(lambda task: [agl.emit_reward(1, propagate=False), core]))
    spans = await _spans(store, rollout)
    assert [(span.name, span.sequence_id) for span in spans] == [("agentlightning.annotation", 2), ("x", 3)]

    from opentelemetry.sdk.trace import TracerProvider

    def readable(task: Any) -> list[Any]:
        span = TracerProvider().get_tracer("t").start_span("mine")
        span.end()
        return [span]

    rollout = await _step(store, Agent(readable))
    assert [span.name for span in await _spans(store, rollout)] == ["mine"]
    assert "Tracer is already an OpenTelemetry tracer" in caplog.text
    rollout = await _step(store, Agent(lambda task: []))
    assert rollout.status == "succeeded"


@pytest.mark.parametrize(
    ("result", "error"),
    [
        ({"a": 1}, TypeError),
        ("0.5", TypeError),
        ([agl.Triplet(prompt=1, response=2)], ValueError),
        ([1.0, 2.0], ValueError),
    ],
)
async def test_results_that_are_none(
    store: InMemoryLightningStore, result: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match="Invalid raw result type"):
        await _step(store, Agent(lambda task: result))
    (rollout,) = await store.query_rollouts()
    assert rollout.status == "failed"
    (span,) = await _spans(store, rollout)
    assert "Invalid raw result type" in span.attributes["exception.message"]
    assert await _states(store, rollout) == ["started", "failed error"]


async def test_a_result_that_the_store_refuses(store: InMemoryLightningStore) -> None:
    nowhere = agl.Span.from_attributes(attributes={})
    with pytest.raises(ValueError, match="Rollout  not found"):
        await _step(store, Agent(lambda task: [nowhere]))
    (rollout,) = await store.query_rollouts()
    assert (rollout.status, await _states(store, rollout)) == ("failed", ["started", "failed error"])


async def test_an_agent_that_raises(store: InMemoryLightningStore) -> None:
    hook = Recorder()
    with pytest.raises(ZeroDivisionError):
        await _step(store, Agent(lambda task: 1 / 0), hooks=[hook])
    (rollout,) = await store.query_rollouts()
    attempt = rollout.attempt  # type: ignore[union-attr]
    assert (rollout.status, attempt.status) == ("failed", "failed")
    assert attempt.metadata == {
        "reason": "error",
        "failure": {"type": "ZeroDivisionError", "message": "division by zero"},
    }
    assert await _states(store, rollout) == ["started", "failed error"]
    (span,) = await _spans(store, rollout)
    assert span.name == "agentlightning.exception"
    assert span.attributes["exception.type"] == "ZeroDivisionError"
    assert [name for name, _, _ in hook.calls] == ["on_rollout_start", "on_trace_start", "on_rollout_end"]
    assert hook.calls[-1][2]["spans"] == []


@pytest.mark.parametrize("kind", [Agent, AsyncAgent])
async def test_an_agent_that_exits_does_not_take_the_runner_along(
    store: InMemoryLightningStore, kind: Any
) -> None:
    async def leave_async(task: Any) -> None:
        raise SystemExit(3)

    def leave(task: Any) -> None:
        raise SystemExit(3)

    with pytest.raises(RuntimeError, match="exited"):
        await _step(store, kind(leave_async if kind is AsyncAgent else leave))
    (rollout,) = await store.query_rollouts()
    assert rollout.status == "failed"


async def test_missing_resources_fail_the_attempt(store: InMemoryLightningStore) -> None:
    queued = await store.enqueue_rollout(input="t", resources_id="nowhere")
    with _runner(max_rollouts=1).run_context(agent=Agent(lambda task: 1.0), store=store) as runner:
        await runner.iter()
    rollout = await store.get_rollout_by_id(queued.rollout_id)
    assert rollout is not None
    assert rollout.status == "failed"
    metadata = rollout.attempt.metadata  # type: ignore[union-attr]
    assert metadata["reason"] == "missing_resources"
    assert "there are no 'nowhere'" in metadata["failure"]["message"]
    assert await _states(store, rollout) == ["started", "failed missing_resources"]


async def test_missing_resources_in_a_step(store: InMemoryLightningStore) -> None:
    with (
        _runner().run_context(agent=Agent(lambda task: 1.0), store=store) as runner,
        pytest.raises(RuntimeError, match="Failed to fetch resources"),
    ):
        await runner.step("t")


async def test_cancellation_fails_the_attempt(store: InMemoryLightningStore) -> None:
    started = asyncio.Event()

    async def agent(task: Any) -> None:
        agl.emit_message("before")
        started.set()
        await asyncio.sleep(60)

    task = asyncio.create_task(_step(store, AsyncAgent(agent)))
    await asyncio.wait_for(started.wait(), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (rollout,) = await store.query_rollouts()
    assert rollout.status == "failed"
    assert rollout.attempt.metadata["reason"] == "cancelled"  # type: ignore[union-attr]
    assert await _states(store, rollout) == ["started", "failed cancelled"]
    assert [span.name for span in await _spans(store, rollout)] == [
        "agentlightning.message",
        "agentlightning.exception",
    ]


@pytest.mark.parametrize("cancels_rollout", [False, True])
async def test_cancellation_is_never_a_reason_to_try_again(
    store: InMemoryLightningStore, cancels_rollout: bool
) -> None:
    started = asyncio.Event()

    async def agent(task: Any) -> None:
        started.set()
        await asyncio.sleep(60)

    await store.add_resources({})
    config = agl.RolloutConfig(max_attempts=3, retry_condition=["failed"])
    queued = await store.enqueue_rollout(input="t", config=config)
    with _runner().run_context(agent=AsyncAgent(agent), store=store) as runner:
        running = asyncio.create_task(runner.iter())
        await asyncio.wait_for(started.wait(), 10)
        if cancels_rollout:
            await store.update_rollout(queued.rollout_id, status="cancelled")
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    rollout = await store.get_rollout_by_id(queued.rollout_id)
    assert rollout is not None
    assert rollout.status == ("cancelled" if cancels_rollout else "failed")
    attempt = rollout.attempt  # type: ignore[union-attr]
    assert (attempt.sequence_id, attempt.status, attempt.metadata["reason"]) == (1, "failed", "cancelled")


async def test_a_timeout_that_the_store_sees_first_is_told_as_one(store: InMemoryLightningStore) -> None:
    started = asyncio.Event()

    async def hanging(task: Any) -> float:
        started.set()
        await asyncio.sleep(300)
        return 1.0

    await store.add_resources({})
    rollout = await store.enqueue_rollout(input="hang", mode="val")
    agent = AsyncAgent(hanging)
    with _runner(max_rollouts=1, recall_interval=0.02).run_context(agent=agent, store=store) as runner:
        running = asyncio.create_task(runner.iter())
        await asyncio.wait_for(started.wait(), 60)
        attempt = await store.get_latest_attempt(rollout.rollout_id)
        assert attempt is not None
        await store.update_attempt(rollout.rollout_id, attempt.attempt_id, status="timeout")
        await asyncio.wait_for(running, 60)
    assert await _states(store, rollout) == ["started", "failed timeout"]


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_an_agent_whose_rollout_is_cancelled_is_given_up(
    store: InMemoryLightningStore, kind: str
) -> None:
    let_go = threading.Event()
    started = threading.Event()

    async def waiting(task: Any) -> float:
        started.set()
        if task == "hang":
            await asyncio.sleep(300)
        return 1.0

    def blocking(task: Any) -> float:
        started.set()
        if task == "hang":
            let_go.wait(300)
        return 1.0

    agent: Any = AsyncAgent(waiting) if kind == "async" else Agent(blocking)
    await store.add_resources({})
    first, second = [await store.enqueue_rollout(input=task, mode="val") for task in ("hang", "go on")]
    try:
        with _runner(max_rollouts=2, recall_interval=0.02).run_context(agent=agent, store=store) as runner:
            running = asyncio.create_task(runner.iter())
            await asyncio.to_thread(started.wait, 10)
            await store.update_rollout(first.rollout_id, status="cancelled")
            await asyncio.wait_for(running, 60)
    finally:
        let_go.set()
    cancelled = await store.get_rollout_by_id(first.rollout_id)
    assert cancelled is not None
    assert (cancelled.status, cancelled.attempt.status) == ("cancelled", "failed")  # type: ignore[union-attr]
    assert cancelled.attempt.metadata["reason"] == "cancelled"  # type: ignore[union-attr]
    assert await _states(store, first) == ["started", "failed cancelled"]
    assert (await store.get_rollout_by_id(second.rollout_id)).status == "succeeded"  # type: ignore[union-attr]


async def test_what_is_claimed_while_the_runner_is_cancelled_is_not_forgotten() -> None:
    asked = asyncio.Event()

    class Slow(InMemoryLightningStore):
        async def dequeue_rollout(self, worker_id: str | None = None) -> Any:
            asked.set()
            await asyncio.sleep(0.1)
            return await super().dequeue_rollout(worker_id=worker_id)

    store = Slow()
    await store.add_resources({})
    queued = await store.enqueue_rollout(input="t")
    with _runner().run_context(agent=Agent(lambda task: 1.0), store=store) as runner:
        running = asyncio.create_task(runner.iter())
        await asyncio.wait_for(asked.wait(), 10)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    rollout = await store.get_rollout_by_id(queued.rollout_id)
    assert rollout is not None
    assert (rollout.status, rollout.attempt.metadata["reason"]) == ("failed", "cancelled")  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_an_agent_that_hangs_is_given_up(store: InMemoryLightningStore, kind: str) -> None:
    cancelled, let_go = asyncio.Event(), threading.Event()

    async def waiting(task: Any) -> float:
        if task == "hang":
            try:
                await asyncio.sleep(300)
            finally:
                cancelled.set()
        return 1.0

    def blocking(task: Any) -> float:
        if task == "hang":
            let_go.wait(300)
        return 1.0

    agent: Any = AsyncAgent(waiting) if kind == "async" else Agent(blocking)
    await store.add_resources({})
    config = agl.RolloutConfig(timeout_seconds=0.3)
    rollouts = [
        await store.enqueue_rollout(input=task, mode="val", config=config) for task in ("hang", "go on")
    ]
    try:
        with _runner(max_rollouts=2).run_context(agent=agent, store=store) as runner:
            await asyncio.wait_for(runner.iter(), 60)
    finally:
        let_go.set()
    statuses = [(await store.get_latest_attempt(rollout.rollout_id)).status for rollout in rollouts]  # type: ignore[union-attr]
    assert statuses == ["timeout", "succeeded"]
    assert await _states(store, rollouts[0]) == ["started", "failed timeout"]
    assert (await store.get_rollout_by_id(rollouts[0].rollout_id)).status == "failed"  # type: ignore[union-attr]
    assert cancelled.is_set() is (kind == "async")


async def test_an_attempt_that_has_been_given_up_by_others_stays_so(store: InMemoryLightningStore) -> None:
    async def hang(task: Any) -> None:
        (rollout,) = await store.query_rollouts()
        await store.update_attempt(rollout.rollout_id, "latest", status="failed")
        await asyncio.sleep(300)

    await store.add_resources({})
    await store.enqueue_rollout(input=1, config=agl.RolloutConfig(timeout_seconds=0.3))
    with _runner(max_rollouts=1).run_context(agent=AsyncAgent(hang), store=store) as runner:
        await asyncio.wait_for(runner.iter(), 60)
    (rollout,) = await store.query_rollouts()
    assert rollout.attempt.status == "failed"  # type: ignore[union-attr]


async def test_an_agent_that_is_cancelled_from_within_fails_its_attempt_only(
    store: InMemoryLightningStore,
) -> None:
    async def agent(task: Any) -> float:
        if task == "cancel":
            part = asyncio.create_task(asyncio.sleep(300))
            part.cancel()
            await part
        return 1.0

    await store.add_resources({})
    for task in ("cancel", "go on"):
        await store.enqueue_rollout(input=task)
    with _runner(max_rollouts=2).run_context(agent=AsyncAgent(agent), store=store) as runner:
        await asyncio.wait_for(runner.iter(), 60)
    assert [rollout.status for rollout in await store.query_rollouts()] == ["failed", "succeeded"]


async def test_hooks_that_raise_are_logged(
    store: InMemoryLightningStore, caplog: pytest.LogCaptureFixture
) -> None:
    class Bad(agl.Hook):
        async def on_trace_start(self, **kwargs: Any) -> None:  # type: ignore[override]
            raise RuntimeError("bad hook")

    good = Recorder()
    rollout = await _step(store, Agent(lambda task: 1.0), hooks=[Bad(), good])
    assert rollout.status == "succeeded"
    assert len(good.calls) == 4
    assert "bad hook" in caplog.text


variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


async def test_sync_agents_run_in_a_thread_with_this_context(store: InMemoryLightningStore) -> None:
    main_thread = threading.current_thread()
    seen: list[Any] = []
    beats = 0

    def agent(task: Any) -> float:
        seen.extend([threading.current_thread() is main_thread, variable.get(), agl.get_active_tracer()])
        # A loop of its own is the agent's good right.
        asyncio.run(asyncio.sleep(0))
        time.sleep(0.2)
        agl.emit_message("from the thread")
        return 1.0

    async def beat() -> None:
        nonlocal beats
        while True:
            await asyncio.sleep(0.01)
            beats += 1

    token = variable.set("carried")
    beating = asyncio.create_task(beat())
    rollout = await _step(store, Agent(agent))
    beating.cancel()
    variable.reset(token)
    assert seen[0] is False
    assert seen[1] == "carried"
    assert isinstance(seen[2], OtelTracer)
    # The loop went on while the agent slept.
    assert beats >= 3
    assert [span.name for span in await _spans(store, rollout)] == [
        "agentlightning.message",
        "agentlightning.annotation",
    ]


async def test_modes_choose_the_method(store: InMemoryLightningStore) -> None:
    class Both(agl.LitAgent[Any]):
        def training_rollout(self, task: Any, resources: Any, rollout: Any) -> float:
            return 1.0

        async def validation_rollout_async(self, task: Any, resources: Any, rollout: Any) -> float:
            return 2.0

    for mode, expected in (("train", 1.0), ("val", 2.0), ("test", 2.0), (None, 2.0)):
        rollout = await _step(store, Both(), mode=mode)
        assert agl.find_final_reward(await _spans(store, rollout)) == expected


async def test_iter_stops_at_max_rollouts(store: InMemoryLightningStore) -> None:
    await store.add_resources({})
    for task in range(3):
        await store.enqueue_rollout(input=task)
    seen: list[Any] = []
    agent = Agent(lambda task: seen.append(task) or 1.0)
    with _runner(max_rollouts=2, poll_interval=30.0).run_context(agent=agent, store=store) as runner:
        await asyncio.wait_for(runner.iter(), 10)
    assert seen == [0, 1]
    assert [rollout.status for rollout in await store.query_rollouts()] == [
        "succeeded",
        "succeeded",
        "queuing",
    ]


async def test_iter_waits_for_tasks_until_it_is_stopped(store: InMemoryLightningStore) -> None:
    await store.add_resources({})
    event = ThreadingEvent()
    agent = Agent(lambda task: 1.0)
    with _runner(poll_interval=5.0).run_context(agent=agent, store=store, worker_id=7) as runner:
        running = asyncio.create_task(runner.iter(event=event))
        await asyncio.sleep(0.2)
        queued = await store.enqueue_rollout(input="late")
        # Long before the poll interval is over.
        (done,) = await store.wait_for_rollouts(rollout_ids=[queued.rollout_id], timeout=4.0)
        assert done.status == "succeeded"
        event.set()
        await asyncio.wait_for(running, 10)
    (attempt,) = await store.query_attempts(queued.rollout_id)
    assert attempt.worker_id == "Worker-7"


async def test_the_rollout_under_way_is_finished_when_stopped(store: InMemoryLightningStore) -> None:
    await store.add_resources({})
    event = ThreadingEvent()

    async def agent(task: Any) -> float:
        event.set()
        await asyncio.sleep(0.05)
        return 1.0

    for task in range(2):
        await store.enqueue_rollout(input=task)
    with _runner().run_context(agent=AsyncAgent(agent), store=store) as runner:
        await asyncio.wait_for(runner.iter(event=event), 10)
    assert [rollout.status for rollout in await store.query_rollouts()] == ["succeeded", "queuing"]


async def test_an_outage_is_ridden_out() -> None:
    class Flaky(InMemoryLightningStore):
        dequeues = 3
        updates = 1

        async def dequeue_rollout(self, worker_id: str | None = None) -> Any:
            if self.dequeues:
                self.dequeues -= 1
                raise StoreUnavailableError("away")
            return await super().dequeue_rollout(worker_id=worker_id)

        async def update_attempt(self, *args: Any, **kwargs: Any) -> Any:
            if self.updates:
                self.updates -= 1
                raise StoreUnavailableError("away")
            return await super().update_attempt(*args, **kwargs)

    store = Flaky()
    await store.add_resources({})
    queued = await store.enqueue_rollout(input="t")
    with _runner(max_rollouts=1).run_context(agent=Agent(lambda task: 1.0), store=store) as runner:
        await asyncio.wait_for(runner.iter(), 20)
    rollout = await store.get_rollout_by_id(queued.rollout_id)
    assert rollout is not None
    assert rollout.status == "succeeded"
    assert (store.dequeues, store.updates) == (0, 0)


async def test_a_store_s_own_methods_are_called() -> None:
    class Own(InMemoryLightningStore):
        calls: ClassVar[list[str]] = []

        async def dequeue_rollout(self, worker_id: str | None = None, *, wait: float | None = None) -> Any:
            self.calls.append("dequeue_rollout")
            return await super().dequeue_rollout(worker_id=worker_id, wait=wait)

        async def add_many_spans(self, spans: Any) -> Any:
            self.calls.append(f"add_many_spans {len(spans)}")
            return await super().add_many_spans(spans)

        async def update_attempt(self, *args: Any, **kwargs: Any) -> Any:
            self.calls.append("update_attempt")
            return await super().update_attempt(*args, **kwargs)

    store = Own()
    await store.add_resources({})
    await store.enqueue_rollout(input="t")
    with _runner(max_rollouts=1).run_context(agent=Agent(lambda task: 1.0), store=store) as runner:
        await runner.iter()
    assert Own.calls == ["dequeue_rollout", "add_many_spans 1", "add_many_spans 2", "update_attempt"]


async def test_workers_of_one_process_share_agent_and_nothing_else(store: InMemoryLightningStore) -> None:
    await store.add_resources({})
    ids = [(await store.enqueue_rollout(input=task)).rollout_id for task in range(12)]
    event = ThreadingEvent()
    workers: set[str] = set()

    class Concurrent(agl.LitAgent[Any]):
        async def rollout(self, task: Any, resources: Any, rollout: Any) -> float:  # type: ignore[override]
            workers.add(self.runner.get_worker_id())  # type: ignore[attr-defined]
            assert self.tracer is agl.get_active_tracer()
            agl.emit_message(f"{task} begins")
            await asyncio.sleep(0.03)
            agl.emit_message(f"{task} ends")
            return float(task)

    template, agent = _runner(), Concurrent()
    runners = [template.for_worker() for _ in range(3)]

    async def work(number: int) -> None:
        with runners[number].run_context(agent=agent, store=store, worker_id=number) as runner:
            await runner.iter(event=event)

    working = [asyncio.create_task(work(number)) for number in range(2)]
    threaded = asyncio.create_task(asyncio.to_thread(asyncio.run, work(2)))
    await store.wait_for_rollouts(rollout_ids=ids, timeout=20)
    event.set()
    await asyncio.gather(*working, threaded)
    assert workers == {"Worker-0", "Worker-1", "Worker-2"}
    for task, rollout_id in enumerate(ids):
        begins, ends, reward = await _spans(store, await store.get_rollout_by_id(rollout_id))
        assert [get_message_value(begins), get_message_value(ends)] == [f"{task} begins", f"{task} ends"]
        assert agl.get_reward_value(reward) == float(task)


async def test_one_runner_runs_many_rollouts_at_once_and_mixes_nothing(
    store: InMemoryLightningStore,
) -> None:
    await store.add_resources({})
    ids = [(await store.enqueue_rollout(input=task)).rollout_id for task in range(128)]
    at_once, most = 0, 0
    all_there = asyncio.Event()

    class Concurrent(agl.LitAgent[Any]):
        async def rollout(self, task: Any, resources: Any, rollout: Any) -> float:  # type: ignore[override]
            nonlocal at_once, most
            at_once += 1
            most = max(most, at_once)
            if at_once == 64:
                all_there.set()
            agl.emit_message(f"{task} begins")
            with agl.operation(name=f"{task} works"):
                await all_there.wait()
                agl.emit_message(f"{task} in between")
            # In a thread of its own it is still the same rollout.
            await asyncio.to_thread(agl.emit_message, f"{task} ends")
            at_once -= 1
            return float(task)

    runner = _runner(max_rollouts=100, concurrency=64, agent=Concurrent())
    with runner.run_context(store=store) as running:
        await asyncio.wait_for(running.iter(), 60)
    # Never more than there may be, and as many as there can be.
    assert (most, at_once) == (64, 0)
    statuses = [rollout.status for rollout in await store.query_rollouts()]
    assert statuses == ["succeeded"] * 100 + ["queuing"] * 28
    trace_ids = set()
    for task, rollout_id in enumerate(ids[:100]):
        spans = await _spans(store, await store.get_rollout_by_id(rollout_id))
        *traced, reward = spans
        assert [get_message_value(span) for span in traced] == [
            f"{task} begins",
            f"{task} in between",
            None,
            f"{task} ends",
        ]
        assert traced[2].attributes["agentlightning.operation.name"] == f"{task} works"
        assert traced[1].parent_id == traced[2].span_id
        assert agl.get_reward_value(reward) == float(task)
        trace_ids.add(traced[0].trace_id)
        assert {span.trace_id for span in traced} == {traced[0].trace_id}
    assert len(trace_ids) == 100
    workers = await store.query_workers()
    assert {worker.worker_id for worker in workers} == {f"Worker-0-{place}" for place in range(64)}
    assert {worker.status for worker in workers} == {"idle"}


async def test_places_of_a_runner_finish_when_it_is_stopped_and_fail_when_it_is_cancelled(
    store: InMemoryLightningStore,
) -> None:
    await store.add_resources({})
    let_go = asyncio.Event()
    begun = asyncio.Semaphore(0)

    async def agent(task: Any) -> float:
        begun.release()
        await let_go.wait()
        return 1.0

    for expected in ("succeeded", "failed"):
        ids = [(await store.enqueue_rollout(input=task)).rollout_id for task in range(4)]
        event = ThreadingEvent()
        let_go.clear()
        with _runner(concurrency=3).run_context(agent=AsyncAgent(agent), store=store) as runner:
            running = asyncio.create_task(runner.iter(event=event))
            for _ in range(3):
                await asyncio.wait_for(begun.acquire(), 10)
            if expected == "succeeded":
                event.set()
                let_go.set()
                await asyncio.wait_for(running, 10)
            else:
                running.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await running
        rollouts = [await store.get_rollout_by_id(rollout_id) for rollout_id in ids]
        assert [rollout.status for rollout in rollouts if rollout] == [expected] * 3 + ["queuing"]
        await store.update_rollout(ids[-1], status="cancelled")


async def test_a_store_that_refuses_work_ends_the_runner_after_what_it_is_at() -> None:
    let_go = asyncio.Event()

    class Refusing(InMemoryLightningStore):
        dequeues = 0

        async def dequeue_rollout(self, worker_id: str | None = None) -> Any:
            self.dequeues += 1
            if self.dequeues == 2:
                let_go.set()
                raise agl.StoreUnauthorizedError("not you")
            return await super().dequeue_rollout(worker_id=worker_id)

    async def agent(task: Any) -> float:
        await let_go.wait()
        await asyncio.sleep(0.05)
        return 1.0

    store = Refusing()
    await store.add_resources({})
    await store.enqueue_rollout(input="t")
    with (
        _runner(concurrency=2).run_context(agent=AsyncAgent(agent), store=store) as runner,
        pytest.raises(PermissionError, match="not you"),
    ):
        await asyncio.wait_for(runner.iter(), 30)
    assert [rollout.status for rollout in await store.query_rollouts()] == ["succeeded"]


async def test_a_runner_goes_on_when_its_store_is_back(tmp_path: Path) -> None:
    server = StoreServer("--path", str(tmp_path / "agl.db"))
    server.start()
    begun, let_go = asyncio.Event(), asyncio.Event()

    async def agent(task: Any) -> float:
        agl.emit_message(f"{task} begins")
        begun.set()
        await let_go.wait()
        agl.emit_message(f"{task} ends")
        return float(task)

    # So impatient that it is up to the runner.
    client = agl.LightningStoreClient(server.url, max_outage=0.05)
    store = agl.LightningStoreClient(server.url)
    await store.add_resources({})
    tasks = [await store.enqueue_rollout(input=task) for task in range(3)]
    event = ThreadingEvent()
    with _runner().run_context(agent=AsyncAgent(agent), store=client) as runner:
        running = asyncio.create_task(runner.iter(event=event))
        await asyncio.wait_for(begun.wait(), 30)
        server.stop(signal.SIGKILL)
        # It has everything to say while nobody listens.
        let_go.set()
        await asyncio.sleep(0.3)
        assert not running.done()
        server.start()
        tasks.append(await store.enqueue_rollout(input=3))
        done = await store.wait_for_rollouts(
            rollout_ids=[rollout.rollout_id for rollout in tasks], timeout=60
        )
        event.set()
        await asyncio.wait_for(running, 60)
    assert [rollout.status for rollout in done] == ["succeeded"] * 4
    for task, rollout in enumerate(tasks):
        begins, ends, reward = await _spans(store, rollout)
        assert [get_message_value(begins), get_message_value(ends)] == [f"{task} begins", f"{task} ends"]
        assert agl.get_reward_value(reward) == float(task)
        assert await _states(store, rollout) == ["started", "finished"]
    assert server.stop(signal.SIGTERM) == 0


async def test_any_tracer_with_the_basic_methods_will_do(store: InMemoryLightningStore) -> None:
    class Minimal(Tracer):
        def init(self, *args: Any, **kwargs: Any) -> None:
            pass

        @asynccontextmanager
        async def trace_context(self, name: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
            yield None

        def get_last_trace(self) -> list[Any]:
            return []

    await store.add_resources({})
    runner = LitAgentRunner[Any](Minimal(), heartbeat_interval=0)
    with runner.run_context(agent=Agent(lambda task: 1.0), store=store) as running:
        assert (await running.step("t")).status == "succeeded"
    failing = Agent(lambda task: 1 / 0)
    with runner.run_context(agent=failing, store=store) as running, pytest.raises(ZeroDivisionError):
        await running.step("t")


@pytest.fixture
def snapshot(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    calls: list[float] = []

    def fake(include_gpu: bool = False) -> dict[str, Any]:
        calls.append(time.time())
        if len(calls) == 1:
            raise OSError("the first one fails")
        return {"n": len(calls)}

    monkeypatch.setattr(runner_module, "system_snapshot", fake)
    return calls  # type: ignore[return-value]


@pytest.mark.parametrize("mode", ["thread", "asyncio"])
async def test_heartbeats(store: InMemoryLightningStore, snapshot: list[float], mode: Any) -> None:
    runner = LitAgentRunner[Any](
        OtelTracer(), heartbeat_interval=0.05, interval_jitter=0.01, heartbeat_launch_mode=mode
    )
    with runner.run_context(agent=Agent(lambda task: 1.0), store=store):
        stop = runner._start_heartbeat_loop(store)
        assert stop is not None
        for _ in range(500):
            worker = await store.get_worker_by_id("Worker-0")
            if worker is not None and worker.heartbeat_stats is not None and worker.heartbeat_stats["n"] >= 3:
                break
            await asyncio.sleep(0.01)
        else:
            raise AssertionError("no heartbeat arrived")
        await stop()
        last = await store.get_worker_by_id("Worker-0")
        await asyncio.sleep(0.2)
        assert await store.get_worker_by_id("Worker-0") == last


async def test_a_slow_snapshot_sends_nothing(
    store: InMemoryLightningStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "system_snapshot", lambda include_gpu: time.sleep(0.2) or {"n": 1})
    runner = LitAgentRunner[Any](OtelTracer(), heartbeat_interval=0.05)
    with runner.run_context(agent=Agent(lambda task: 1.0), store=store):
        await runner._emit_heartbeat(store)
    assert await store.get_worker_by_id("Worker-0") is None


def test_system_snapshot_tells_of_this_machine() -> None:
    from agentlightning.utils.system_snapshot import system_snapshot

    snapshot = system_snapshot(include_gpu=True)
    assert set(snapshot) == {
        *("timestamp", "host", "os", "cpu_name", "cpu_cores", "cpu_threads", "cpu_usage_pct"),
        *("mem_used_gb", "mem_total_gb", "mem_pct", "disk_used_gb", "disk_total_gb", "disk_pct"),
        *("bytes_sent_mb", "bytes_recv_mb", "gpus"),
    }
    assert 0 < snapshot["mem_used_gb"] <= snapshot["mem_total_gb"]
    assert 0 <= snapshot["cpu_usage_pct"] <= 100
    assert snapshot["disk_total_gb"] > 0
    assert snapshot["cpu_threads"] >= 1
    assert isinstance(snapshot["gpus"], list)


def test_misuse() -> None:
    with pytest.raises(ValueError, match="launch mode"):
        LitAgentRunner(OtelTracer(), heartbeat_launch_mode="fork")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="concurrency must be at least 1"):
        LitAgentRunner(OtelTracer(), concurrency=0)
    runner = LitAgentRunner[Any](OtelTracer())
    with pytest.raises(RuntimeError):
        runner.run()
    with pytest.raises(ValueError, match="There is no agent"):
        runner.init()
    for get in (runner.get_agent, runner.get_store):
        with pytest.raises(ValueError, match="not initialized"):
            get()
    assert runner.get_worker_id() == "Worker-Unknown"


async def test_the_agent_may_be_given_to_the_constructor(store: InMemoryLightningStore) -> None:
    await store.add_resources({})
    runner = _runner(agent=Agent(lambda task: 1.0))
    for _ in range(2):
        with runner.run_context(store=store) as running:
            assert agl.find_final_reward(await _spans(store, await running.step("t"))) == 1.0
    # Another one for one time.
    with runner.run_context(agent=Agent(lambda task: 2.0), store=store) as running:
        assert agl.find_final_reward(await _spans(store, await running.step("t"))) == 2.0
    assert runner.get_agent().validation_rollout("t", {}, None) == 1.0  # type: ignore[arg-type]


def test_run_context_tears_down_only_what_was_set_up(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[str] = []

    class Odd(LitAgentRunner[Any]):
        def init_worker(self, worker_id: int, store: Any, **kwargs: Any) -> None:
            raise RuntimeError("no worker")

        def teardown_worker(self, worker_id: int, *args: Any, **kwargs: Any) -> None:
            calls.append("worker")

        def teardown(self, *args: Any, **kwargs: Any) -> None:
            calls.append("runner")
            raise RuntimeError("bad end")

    context = Odd(OtelTracer()).run_context(agent=Agent(None), store=InMemoryLightningStore())
    with caplog.at_level(logging.ERROR), pytest.raises(RuntimeError, match="no worker"), context:
        pass
    assert calls == ["runner"]
    assert "Error during runner teardown" in caplog.text


@pytest.mark.filterwarnings("ignore:Passing `store`:DeprecationWarning")
async def test_a_store_given_to_one_trace_holds_for_that_trace_only() -> None:
    worker_s, other = InMemoryLightningStore(), InMemoryLightningStore()
    tracer = OtelTracer()

    async def record(name: str, given: InMemoryLightningStore | None) -> tuple[str, Any, Any]:
        store = worker_s if given is None else given
        rollout = await store.start_rollout(input=name)
        ids = {"rollout_id": rollout.rollout_id, "attempt_id": rollout.attempt.attempt_id}
        async with tracer.trace_context(store=given, **ids):
            agl.emit_message(f"{name} begins")
            await asyncio.sleep(0.01)
            agl.emit_message(f"{name} ends")
        return name, store, rollout

    with tracer.lifespan(worker_s):
        # One after the other, and side by side.
        recorded = [await record("first", other), await record("second", None)]
        recorded += await asyncio.gather(record("third", other), record("fourth", None))
    for name, store, rollout in recorded:
        messages = [get_message_value(span) for span in await store.query_spans(rollout.rollout_id)]
        assert messages == [f"{name} begins", f"{name} ends"]
    assert [(await store.statistics()).get("total_spans") for store in (worker_s, other)] == [4, 4]
