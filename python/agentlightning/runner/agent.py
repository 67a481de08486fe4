"""`LitAgentRunner`: runs a `LitAgent` on the tasks of a store."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import inspect
import logging
import random
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from agentlightning.emitter.exception import emit_exception
from agentlightning.emitter.reward import emit_reward, find_final_reward
from agentlightning.litagent.litagent import running_runner
from agentlightning.runner.base import Runner
from agentlightning.store.delegate import DelegatingStore
from agentlightning.store.errors import StoreUnavailableError
from agentlightning.tracer.base import get_active_tracer
from agentlightning.tracer.otel import OtelTracer
from agentlightning.tracer.resources import active_resources
from agentlightning.types import Span, SpanCoreFields
from agentlightning.utils.system_snapshot import system_snapshot

if TYPE_CHECKING:
    from agentlightning.execution.events import ExecutionEvent
    from agentlightning.litagent.litagent import LitAgent
    from agentlightning.store.base import LightningStore
    from agentlightning.tracer.base import Tracer
    from agentlightning.types import (
        AttemptedRollout,
        AttemptStatus,
        Hook,
        NamedResources,
        Rollout,
        RolloutMode,
        RolloutRawResult,
    )

logger = logging.getLogger(__name__)

T = TypeVar("T")

_FIRST_IDLE_SECONDS = 0.05
_EVENT_CHECK_SECONDS = 0.1
# How long the store is asked to wait for work at a time. Meanwhile nobody looks whether to stop, for a call
# that is given up may have claimed something.
_WAIT_SECONDS = 0.5
_REPORT_SECONDS = 60.0
"""How long the end of an attempt is offered to a store that can't be reached."""
_CANCEL_SECONDS = 5.0
"""How long an agent that is cancelled gets to clean up."""


class _TimedOut(TimeoutError):
    """The agent has used up its rollout's time."""


class LitAgentRunner(Runner[T]):
    """Takes tasks from a store one at a time, runs an agent on each inside a trace, and reports how it
    went."""

    def __init__(
        self,
        tracer: Tracer,
        max_rollouts: int | None = None,
        poll_interval: float = 5.0,
        heartbeat_interval: float = 10.0,
        interval_jitter: float = 0.5,
        heartbeat_launch_mode: Literal["thread", "asyncio"] = "thread",
        heartbeat_include_gpu: bool = False,
    ) -> None:
        """Makes a runner.

        Args:
            tracer: Records what the agent does.
            max_rollouts: After how many rollouts `iter` ends; never by default.
            poll_interval: Seconds between two looks at a queue that has been empty for long. A queue that
                has just run empty is looked at more often.
            heartbeat_interval: Seconds between two signs of life; 0 for none.
            interval_jitter: Seconds by which both vary at most, so that workers don't act in step.
            heartbeat_launch_mode: Whether signs of life come from threads of their own or from the event
                loop.
            heartbeat_include_gpu: Whether they tell of GPUs.
        """
        super().__init__()
        if heartbeat_launch_mode not in ("thread", "asyncio"):
            raise ValueError(f"Unsupported heartbeat launch mode: {heartbeat_launch_mode}")
        self._tracer = tracer
        self._max_rollouts = max_rollouts
        self._poll_interval = poll_interval
        self._heartbeat_interval = heartbeat_interval
        self._interval_jitter = interval_jitter
        self._heartbeat_launch_mode = heartbeat_launch_mode
        self._heartbeat_include_gpu = heartbeat_include_gpu
        self._agent: LitAgent[T] | None = None
        self._hooks: Sequence[Hook] = ()
        self._store: LightningStore | None = None

    # Setting up

    def for_worker(self) -> LitAgentRunner[T]:
        """A copy for a further worker of this process: it shares the agent, and nothing that changes."""
        copied = copy.copy(self)
        copied._tracer = copy.copy(self._tracer)
        return copied

    def init(self, agent: LitAgent[T], *, hooks: Sequence[Hook] | None = None, **kwargs: Any) -> None:
        """Takes the agent and the hooks that are called around each attempt."""
        self._agent = agent
        agent.set_runner(self)
        self._hooks = list(hooks) if hooks is not None else []
        self._tracer.init()

    def init_worker(self, worker_id: int, store: LightningStore, **kwargs: Any) -> None:
        """Takes the store and the worker's number, and sets the tracer up."""
        self._store = store
        self.worker_id = worker_id
        self._tracer.init_worker(worker_id, store)

    def teardown(self, *args: Any, **kwargs: Any) -> None:
        """Lets go of the agent."""
        self._agent = None
        self._store = None
        self._hooks = []
        self._tracer.teardown()

    def teardown_worker(self, worker_id: int, *args: Any, **kwargs: Any) -> None:
        """Lets go of the store."""
        self.worker_id = None
        self._store = None
        self._tracer.teardown_worker(worker_id)

    @property
    def tracer(self) -> Tracer:
        """What records the agent's doings."""
        return self._tracer

    def get_agent(self) -> LitAgent[T]:
        """The agent.

        Raises:
            ValueError: before `init`.
        """
        if self._agent is None:
            raise ValueError("Agent not initialized. Call init() first.")
        return self._agent

    def get_store(self) -> LightningStore:
        """The store.

        Raises:
            ValueError: before `init_worker`.
        """
        if self._store is None:
            raise ValueError("Store not initialized. Call init_worker() first.")
        return self._store

    def get_worker_id(self) -> str:
        """The worker's name in the store."""
        return f"Worker-{self.worker_id}" if self.worker_id is not None else "Worker-Unknown"

    def _log_prefix(self, rollout_id: str | None = None) -> str:
        prefix = f"[Worker {self.worker_id}]" if self.worker_id is not None else "[Worker]"
        return f"{prefix} [Rollout {rollout_id}]" if rollout_id else prefix

    # Working

    async def iter(self, *, event: ExecutionEvent | None = None) -> None:
        """Works through the store's queue until `event` is set or `max_rollouts` have been run.

        A rollout under way when the event is set is run to its end. A store that can't be reached is waited
        for.
        """
        store = self.get_store()
        stop_heartbeat = self._start_heartbeat_loop(store)
        # A store that can wait answers the moment there is work; others are asked again and again.
        waits = _can_wait(store)
        options = {"wait": _WAIT_SECONDS} if waits else {}
        done = 0
        idle_since: float | None = None
        try:
            while not (event is not None and event.is_set()):
                if self._max_rollouts is not None and done >= self._max_rollouts:
                    break
                try:
                    claimed = await store.dequeue_rollout(worker_id=self.get_worker_id(), **options)
                    has_waited = waits
                except StoreUnavailableError as exc:
                    logger.warning("%s The store can't be reached: %s", self._log_prefix(), exc)
                    claimed = None
                    has_waited = False
                if claimed is None and has_waited:
                    continue
                if claimed is None:
                    idle_since = idle_since or time.monotonic()
                    await self._sleep(self._idle_interval(time.monotonic() - idle_since), event)
                    continue
                idle_since = None
                await self._step_impl(claimed)
                done += 1
        finally:
            if stop_heartbeat is not None:
                await stop_heartbeat()

    def _idle_interval(self, idle_seconds: float) -> float:
        """How long to leave an empty queue alone: longer, the longer it has been empty.

        A new task thus waits a quarter as long as there was none at most, and `poll_interval` at the very
        most.
        """
        interval = min(self._poll_interval, max(_FIRST_IDLE_SECONDS, idle_seconds / 4))
        jitter = (
            self._interval_jitter * min(1.0, interval / self._poll_interval)
            if self._poll_interval > 0
            else 0.0
        )
        return max(0.01, interval + random.uniform(-jitter, jitter))

    async def _sleep(self, seconds: float, event: ExecutionEvent | None) -> None:
        end = time.monotonic() + seconds
        while not (event is not None and event.is_set()):
            left = end - time.monotonic()
            if left <= 0:
                return
            await asyncio.sleep(left if event is None else min(left, _EVENT_CHECK_SECONDS))

    async def step(
        self,
        input: T,
        *,
        resources: NamedResources | None = None,
        mode: RolloutMode | None = None,
        event: ExecutionEvent | None = None,
    ) -> Rollout:
        """Runs the agent on one task, past the queue, and returns the rollout that it has become.

        Args:
            input: The task.
            resources: What to give the agent; the store's latest by default.
            mode: What the rollout is for.
            event: Ignored.

        Raises:
            Exception: whatever the agent raises, after the attempt has been marked failed.
        """
        store = self.get_store()
        resources_id = None
        if resources is not None:
            resources_id = (await store.add_resources(resources)).resources_id
        claimed = await store.start_rollout(
            input=input, mode=mode, resources_id=resources_id, worker_id=self.get_worker_id()
        )
        rollout_id = await self._step_impl(claimed, raise_on_exception=True)
        rollout = await store.get_rollout_by_id(rollout_id)
        if rollout is None:
            raise RuntimeError("Failed to fetch completed rollout by id after step.")
        return rollout

    async def _step_impl(self, claimed: AttemptedRollout, raise_on_exception: bool = False) -> str:
        """Runs one attempt from its claim to its report, and returns the rollout's id."""
        store = self.get_store()
        rollout_id, attempt_id = claimed.rollout_id, claimed.attempt.attempt_id
        # Only what has come all the way is a success; cancellation in particular is not.
        status: AttemptStatus = "failed"
        reason: str | None = None
        spans: list[Any] = []
        hooks_started = False
        started = time.monotonic()
        try:
            resources = await self._fetch_resources(claimed)
            await self._call_hooks("on_rollout_start", rollout=claimed)
            hooks_started = True
            async with self._tracer.trace_context(
                name=rollout_id, rollout_id=rollout_id, attempt_id=attempt_id
            ):
                await self._call_hooks("on_trace_start", tracer=self._tracer, rollout=claimed)
                try:
                    result = await self._run_agent(claimed, resources, started)
                except Exception as exc:
                    self._record_exception(exc)
                    raise
                except asyncio.CancelledError as exc:
                    self._record_exception(exc)
                    raise
                await self._call_hooks("on_trace_end", tracer=self._tracer, rollout=claimed)
            spans = await self._post_process_rollout_result(claimed, result)
            status = "succeeded"
            logger.info(
                "%s Completed in %.2fs. Collected %d span(s). Final reward: %s",
                self._log_prefix(rollout_id),
                time.monotonic() - started,
                len(spans),
                result if isinstance(result, (int, float)) else find_final_reward(spans),
            )
        except _TimedOut as exc:
            status, reason = "timeout", str(exc)
            if raise_on_exception:
                raise
            logger.error("%s The attempt was given up: %s.", self._log_prefix(rollout_id), exc)
        except Exception as exc:
            reason = f"{type(exc).__name__}: {exc}"
            if raise_on_exception:
                raise
            logger.exception("%s The attempt failed.", self._log_prefix(rollout_id))
        except BaseException as exc:
            reason = f"{type(exc).__name__}: the attempt was cancelled"
            raise
        finally:
            if hooks_started:
                await self._call_hooks("on_rollout_end", rollout=claimed, spans=spans)
            await self._report(store, claimed, status, reason)
        return rollout_id

    async def _fetch_resources(self, claimed: AttemptedRollout) -> NamedResources:
        store = self.get_store()
        if claimed.resources_id is not None:
            update = await store.get_resources_by_id(claimed.resources_id)
        else:
            update = await store.get_latest_resources()
        if update is not None:
            return update.resources
        if claimed.resources_id is None:
            raise RuntimeError(
                f"{self._log_prefix(claimed.rollout_id)} Failed to fetch resources: there are none."
            )
        raise RuntimeError(
            f"{self._log_prefix(claimed.rollout_id)} Failed to fetch resources: no {claimed.resources_id!r}."
        )

    async def _run_agent(
        self, claimed: AttemptedRollout, resources: NamedResources, started: float
    ) -> RolloutRawResult:
        """Runs the agent in a task of its own, for as long as the rollout's `timeout_seconds` since `started`
        allow.

        Raises:
            _TimedOut: if it has not ended by then; a thread that it has is left behind.
            RuntimeError: if it was cancelled, but not by whoever has cancelled this runner.
        """
        task = asyncio.ensure_future(self._call_agent(claimed, resources))
        limit = claimed.config.timeout_seconds
        left = None if limit is None else max(0.0, limit - (time.monotonic() - started))
        try:
            await asyncio.wait([task], timeout=left)
        except asyncio.CancelledError:
            await _cancel(task)
            raise
        if not task.done():
            await _cancel(task)
            raise _TimedOut(f"the agent has not ended within timeout_seconds={limit}")
        if task.cancelled():
            raise RuntimeError("the agent was cancelled from within")
        return task.result()

    async def _call_agent(self, claimed: AttemptedRollout, resources: NamedResources) -> RolloutRawResult:
        """Calls the agent's method for the rollout's mode, an async one here and any other in a thread of
        its own."""
        method = self.get_agent().rollout_method(claimed.mode)
        # The context is this task's own, so there is nothing to put back.
        running_runner.set(self)
        active_resources.set(resources)
        result: Any
        try:
            if inspect.iscoroutinefunction(method):
                result = await method(claimed.input, resources=resources, rollout=claimed)
            else:
                result = await _in_thread(
                    lambda: method(claimed.input, resources=resources, rollout=claimed),
                    name=f"{self.get_worker_id()}-agent",
                )
                if inspect.isawaitable(result):
                    # A plain function may still hand out something to await.
                    result = await result
        except SystemExit as exc:
            # An agent that calls sys.exit() ends its rollout, not its runner.
            raise RuntimeError(f"The agent exited: {exc!r}") from exc
        return cast("RolloutRawResult", result)

    def _record_exception(self, exception: BaseException) -> None:
        """Leaves a span that says what went wrong, where the tracer can take one."""
        if get_active_tracer() is None:
            return
        try:
            emit_exception(exception)
        except Exception:
            logger.exception("%s The agent's exception could not be recorded.", self._log_prefix())

    async def _report(
        self, store: LightningStore, claimed: AttemptedRollout, status: AttemptStatus, reason: str | None
    ) -> None:
        """Tells the store how the attempt has ended, and goes on trying while it can't be reached."""
        changes: dict[str, Any] = {"status": status}
        if reason is not None:
            changes["metadata"] = {**(claimed.attempt.metadata or {}), "failure_reason": reason}
        end = time.monotonic() + _REPORT_SECONDS
        while True:
            try:
                if status == "timeout" and await self._given_up_already(store, claimed):
                    return
                await store.update_attempt(claimed.rollout_id, claimed.attempt.attempt_id, **changes)
                return
            except OSError as exc:
                if time.monotonic() < end:
                    logger.warning("%s Can't report yet: %s", self._log_prefix(claimed.rollout_id), exc)
                    await asyncio.sleep(0.5)
                    continue
                logger.exception(
                    "%s Failed to report the attempt as %s.", self._log_prefix(claimed.rollout_id), status
                )
                return
            except Exception:
                logger.exception(
                    "%s Failed to report the attempt as %s.", self._log_prefix(claimed.rollout_id), status
                )
                return

    async def _given_up_already(self, store: LightningStore, claimed: AttemptedRollout) -> bool:
        """Whether the store's own watch over time limits was first, so that the rollout has moved on."""
        latest = await store.get_latest_attempt(claimed.rollout_id)
        return (
            latest is None
            or latest.attempt_id != claimed.attempt.attempt_id
            or latest.status not in ("preparing", "running")
        )

    async def _call_hooks(self, name: str, **kwargs: Any) -> None:
        """Calls a hook method on every hook; their errors stay theirs."""
        for hook in self._hooks:
            try:
                await getattr(hook, name)(agent=self._agent, runner=self, **kwargs)
            except Exception:
                logger.exception("%s Exception in hook %s of %r", self._log_prefix(), name, hook)

    async def _post_process_rollout_result(
        self, rollout: AttemptedRollout, raw_result: RolloutRawResult
    ) -> list[Any]:
        """Stores what the agent has returned, and says which spans there are.

        Raises:
            TypeError: for a result that is neither None, a number nor a list.
            ValueError: for a list that is not all spans of one kind.
        """
        store = self.get_store()
        ids = rollout.rollout_id, rollout.attempt.attempt_id
        if raw_result is None:
            return list(self._tracer.get_last_trace())
        if isinstance(raw_result, (bool, int)):
            logger.warning(
                "%s Reward is not a number of type float but %r. Auto converting to float.",
                self._log_prefix(rollout.rollout_id),
                raw_result,
            )
            raw_result = float(raw_result)
        if isinstance(raw_result, float):
            trace = list(self._tracer.get_last_trace())
            core = emit_reward(raw_result, propagate=False)
            sequence_id = await store.get_next_span_sequence_id(*ids)
            span = Span.from_core_fields(core, rollout_id=ids[0], attempt_id=ids[1], sequence_id=sequence_id)
            await store.add_span(span)
            return trace
        if not isinstance(raw_result, list):
            raise TypeError(
                f"Invalid raw result type: {type(raw_result)}. Expected None, a float, or a list of spans."
            )
        if not raw_result:
            logger.warning(
                "%s The agent returned an empty list of spans.", self._log_prefix(rollout.rollout_id)
            )
            return []
        return await self._store_spans(ids, raw_result)

    async def _store_spans(self, ids: tuple[str, str], raw: list[Any]) -> list[Any]:
        from opentelemetry.sdk.trace import ReadableSpan

        store = self.get_store()
        if all(isinstance(item, Span) for item in raw):
            for span in raw:
                await store.add_span(span)
            return raw
        if all(isinstance(item, SpanCoreFields) for item in raw):
            sequence_ids = await store.get_many_span_sequence_ids([ids] * len(raw))
            spans = [
                Span.from_core_fields(core, rollout_id=ids[0], attempt_id=ids[1], sequence_id=sequence_id)
                for core, sequence_id in zip(raw, sequence_ids, strict=True)
            ]
            await store.add_many_spans(spans)
            return spans
        if all(isinstance(item, ReadableSpan) for item in raw):
            if isinstance(self._tracer, OtelTracer):
                logger.warning(
                    "%s Tracer is already an OpenTelemetry tracer. Returned spans may be recorded twice.",
                    self._log_prefix(ids[0]),
                )
            added: list[Any] = []
            for readable in raw:
                span = await store.add_otel_span(*ids, readable)
                if span is None:
                    logger.error("%s Failed to add span %r.", self._log_prefix(ids[0]), readable.name)
                else:
                    added.append(span)
            return added
        kinds = sorted({type(item).__name__ for item in raw})
        raise ValueError(
            f"Invalid raw result type: a list of {', '.join(kinds)}. Expected spans of one kind."
        )

    # Heartbeats

    def _start_heartbeat_loop(self, store: LightningStore) -> Callable[[], Awaitable[None]] | None:
        """Starts the signs of life and returns what stops them; after that, none is sent any more."""
        if self._heartbeat_interval <= 0:
            return None
        if self.worker_id is None:
            logger.warning("%s Heartbeats need a worker id.", self._log_prefix())
            return None
        if self._heartbeat_launch_mode == "asyncio":
            return self._start_heartbeat_task(store)
        return self._start_heartbeat_threads(store)

    def _heartbeat_pause(self) -> float:
        jitter = random.uniform(-self._interval_jitter, self._interval_jitter)
        return max(0.01, self._heartbeat_interval + jitter)

    async def _emit_heartbeat(self, store: LightningStore) -> None:
        """One sign of life. Too slow a snapshot, or too slow a store, and none is sent."""
        worker_id = self.get_worker_id()
        try:
            snapshot = await asyncio.wait_for(
                asyncio.to_thread(system_snapshot, self._heartbeat_include_gpu), self._heartbeat_interval
            )
            await asyncio.wait_for(store.update_worker(worker_id, snapshot), self._heartbeat_interval)
        except asyncio.TimeoutError:
            logger.warning("%s Heartbeat timed out.", self._log_prefix())
        except Exception:
            logger.exception("%s Heartbeat failed.", self._log_prefix())

    def _start_heartbeat_task(self, store: LightningStore) -> Callable[[], Awaitable[None]]:
        async def beat() -> None:
            while True:
                await self._emit_heartbeat(store)
                await asyncio.sleep(self._heartbeat_pause())

        task = asyncio.create_task(beat(), name=f"{self.get_worker_id()}-heartbeat")

        async def stop() -> None:
            task.cancel()
            await asyncio.wait([task])

        return stop

    def _start_heartbeat_threads(self, store: LightningStore) -> Callable[[], Awaitable[None]]:
        """Two threads, so that neither a slow snapshot nor a busy event loop keeps the worker silent."""
        worker_id = self.get_worker_id()
        stopped = threading.Event()
        lock = threading.Lock()
        latest: dict[str, Any] = {}
        taken_at = 0.0

        def produce() -> None:
            nonlocal latest, taken_at
            while not stopped.is_set():
                try:
                    snapshot = system_snapshot(self._heartbeat_include_gpu)
                    with lock:
                        latest, taken_at = snapshot, time.monotonic()
                except Exception:
                    logger.warning("%s Heartbeat: system_snapshot failed.", self._log_prefix(), exc_info=True)
                stopped.wait(self._heartbeat_pause())

        def consume() -> None:
            loop = asyncio.new_event_loop()
            warned_at = -1.0
            limit = self._heartbeat_interval + self._interval_jitter + 1.0
            try:
                while not stopped.is_set():
                    with lock:
                        snapshot, moment = latest, taken_at
                    if not snapshot:
                        logger.debug("%s Heartbeat: no snapshot yet.", self._log_prefix())
                        stopped.wait(min(0.05, self._heartbeat_interval))
                        continue
                    if time.monotonic() - moment > limit:
                        if warned_at != moment:
                            logger.warning("%s Heartbeat: the snapshot is stale.", self._log_prefix())
                            warned_at = moment
                    else:
                        try:
                            loop.run_until_complete(
                                asyncio.wait_for(
                                    store.update_worker(worker_id, snapshot), self._heartbeat_interval
                                )
                            )
                        except Exception:
                            logger.warning("%s Heartbeat: update failed.", self._log_prefix(), exc_info=True)
                    stopped.wait(self._heartbeat_pause())
            finally:
                loop.close()

        # Their doings are no part of any trace that is open where they are started.
        context = contextvars.Context()
        threads = [
            threading.Thread(target=produce, name=f"{worker_id}-heartbeat-producer", daemon=True),
            threading.Thread(target=consume, name=f"{worker_id}-heartbeat-consumer", daemon=True),
        ]
        for thread in threads:
            context.run(thread.start)

        async def stop() -> None:
            stopped.set()
            deadline = time.monotonic() + 2.0 + self._heartbeat_interval
            # Threads can't be awaited.
            while any(thread.is_alive() for thread in threads) and time.monotonic() < deadline:  # noqa: ASYNC110
                await asyncio.sleep(0.005)

        return stop


async def _cancel(task: asyncio.Future[Any]) -> None:
    """Cancels an agent and lets it clean up."""
    task.cancel()
    await asyncio.wait([task], timeout=_CANCEL_SECONDS)
    if not task.done():
        logger.error("The agent does not end although it was cancelled; it is left behind.")
    elif not task.cancelled() and task.exception() is not None:
        logger.warning("The agent has failed after it was cancelled: %r", task.exception())


async def _in_thread(function: Callable[[], Any], *, name: str) -> Any:
    """Runs a function in a daemon thread of its own, in a copy of this context.

    Not in the loop's pool: an agent that never returns would then keep the process from ever ending.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)
        elif isinstance(error, Exception) and not isinstance(error, StopIteration):
            future.set_exception(error)
        else:
            # A future refuses StopIteration; SystemExit and its like would end the runner.
            wrapped = RuntimeError(f"The agent exited: {error!r}")
            wrapped.__cause__ = error
            future.set_exception(wrapped)

    def run(context: contextvars.Context) -> None:
        result, error = None, None
        try:
            result = context.run(function)
        except BaseException as exc:
            error = exc
        try:
            loop.call_soon_threadsafe(settle, result, error)
        except RuntimeError:
            logger.debug("The agent returned after its event loop had ended.")

    threading.Thread(target=run, args=(contextvars.copy_context(),), name=name, daemon=True).start()
    return await future


def _can_wait(store: LightningStore) -> bool:
    """Whether a store can be asked to wait for work; a user's own may not know how."""
    while isinstance(store, DelegatingStore):
        store = store._target()
    return "wait" in inspect.signature(store.dequeue_rollout).parameters
