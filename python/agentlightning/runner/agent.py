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
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, cast

from agentlightning.emitter.exception import emit_exception, exception_attributes
from agentlightning.emitter.reward import emit_reward, find_final_reward
from agentlightning.emitter.state import emit_failed, emit_finished, emit_started
from agentlightning.litagent.litagent import running_runner
from agentlightning.runner.base import Runner
from agentlightning.store.client_server import LightningStoreServer
from agentlightning.store.delegate import innermost
from agentlightning.store.errors import StoreUnavailableError
from agentlightning.store.native import Claim, NativeStore
from agentlightning.store.threaded import LightningStoreThreaded
from agentlightning.tracer.base import get_active_tracer
from agentlightning.tracer.otel import OtelTracer
from agentlightning.tracer.resources import active_resources
from agentlightning.types import AttemptedRollout, Span, SpanCoreFields
from agentlightning.utils.system_snapshot import system_snapshot

if TYPE_CHECKING:
    from agentlightning.execution.events import ExecutionEvent
    from agentlightning.litagent.litagent import LitAgent
    from agentlightning.store.base import LightningStore
    from agentlightning.store.delegate import DelegatingStore
    from agentlightning.tracer.base import Tracer
    from agentlightning.types import (
        AttemptStatus,
        Hook,
        NamedResources,
        Rollout,
        RolloutMode,
        RolloutRawResult,
    )

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

_FIRST_IDLE_SECONDS = 0.05
_EVENT_CHECK_SECONDS = 0.1
# How long the store is asked to wait for work at a time. Meanwhile nobody looks whether to stop, for a call
# that is given up may have claimed something.
_WAIT_SECONDS = 0.5
_PATIENCE_AFTER_STOP_SECONDS = 60.0
"""How long a store that can't be reached is waited for once the runner is to stop; before, for ever."""
_CANCEL_SECONDS = 5.0
"""How long an agent that is cancelled gets to clean up."""
_ENDED = ("succeeded", "failed", "cancelled")


class AttemptTimedOut(TimeoutError):
    """The agent has used up its rollout's time."""


class RolloutCancelled(RuntimeError):
    """Somebody has ended the rollout while the agent was at work."""


class ResourcesMissing(RuntimeError):
    """The rollout's resources are not in the store."""


class LitAgentRunner(Runner[T]):
    """Takes tasks from a store, runs an agent on each inside a trace, and reports how it went.

    An attempt that does not succeed has in its `metadata` the `reason` (`error`, `timeout`, `cancelled` or
    `missing_resources`) and the `failure`: the exception's `type` and `message`. One with the reason
    `cancelled` is not tried again.
    """

    def __init__(
        self,
        tracer: Tracer,
        max_rollouts: int | None = None,
        poll_interval: float = 5.0,
        heartbeat_interval: float = 10.0,
        interval_jitter: float = 0.5,
        heartbeat_launch_mode: Literal["thread", "asyncio"] = "thread",
        heartbeat_include_gpu: bool = False,
        *,
        agent: LitAgent[T] | None = None,
        concurrency: int = 1,
        recall_interval: float = 2.0,
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
            agent: The agent to run where `init` is given none.
            concurrency: How many rollouts `iter` runs at the same time. With more than one, each of these
                places is a worker of its own in the store: `Worker-0-0`, `Worker-0-1`, ...
            recall_interval: Seconds between two looks whether the rollout under way has been cancelled, which
                ends its agent; 0 for none.

        Raises:
            ValueError: for a launch mode that there is not, or less than one place.
        """
        super().__init__()
        if heartbeat_launch_mode not in ("thread", "asyncio"):
            raise ValueError(f"Unsupported heartbeat launch mode: {heartbeat_launch_mode}")
        if concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, got {concurrency}")
        self._tracer = tracer
        self._max_rollouts = max_rollouts
        self._poll_interval = poll_interval
        self._heartbeat_interval = heartbeat_interval
        self._interval_jitter = interval_jitter
        self._heartbeat_launch_mode = heartbeat_launch_mode
        self._heartbeat_include_gpu = heartbeat_include_gpu
        self._concurrency = concurrency
        self._recall_interval = recall_interval
        self._own_agent = agent
        self._agent = agent
        self._hooks: Sequence[Hook] = ()
        self._store: LightningStore | None = None
        self._native: NativeStore | None = None
        self._shift: _Shift | None = None

    # Setting up

    def for_worker(self) -> LitAgentRunner[T]:
        """A copy for a further worker of this process: it shares the agent, and nothing that changes."""
        copied = copy.copy(self)
        copied._tracer = copy.copy(self._tracer)
        return copied

    def init(
        self, agent: LitAgent[T] | None = None, *, hooks: Sequence[Hook] | None = None, **kwargs: Any
    ) -> None:
        """Takes the agent, the constructor's by default, and the hooks that are called around each attempt.

        Raises:
            ValueError: if there is no agent.
        """
        agent = agent if agent is not None else self._own_agent
        if agent is None:
            raise ValueError("There is no agent: give one to the runner's constructor or to init().")
        self._agent = agent
        agent.set_runner(self)
        self._hooks = list(hooks) if hooks is not None else []
        self._tracer.init()

    def init_worker(self, worker_id: int, store: LightningStore, **kwargs: Any) -> None:
        """Takes the store and the worker's number, and sets the tracer up."""
        self._store = store
        self._native = _native_behind(store)
        self.worker_id = worker_id
        self._tracer.init_worker(worker_id, store)

    def teardown(self, *args: Any, **kwargs: Any) -> None:
        """Lets go of the agent that `init` was given."""
        self._agent = self._own_agent
        self._store = self._native = None
        self._hooks = []
        self._tracer.teardown()

    def teardown_worker(self, worker_id: int, *args: Any, **kwargs: Any) -> None:
        """Lets go of the store."""
        self.worker_id = None
        self._store = self._native = None
        self._tracer.teardown_worker(worker_id)

    @property
    def tracer(self) -> Tracer:
        """What records the agent's doings."""
        return self._tracer

    @property
    def own_agent(self) -> LitAgent[T] | None:
        """The agent that the constructor was given."""
        return self._own_agent

    def get_agent(self) -> LitAgent[T]:
        """The agent.

        Raises:
            ValueError: before `init`, unless the constructor was given one.
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

        Rollouts under way when the event is set are run to their end. A store that can't be reached is waited
        for.
        """
        store = self.get_store()
        stop_heartbeat = self._start_heartbeat_loop(store)
        shift = self._shift = _Shift(store, event, self._max_rollouts)
        try:
            names = self._worker_names()
            if len(names) == 1:
                await self._work(shift, names[0])
            else:
                await _side_by_side([self._work(shift, name) for name in names], shift)
        finally:
            self._shift = None
            if stop_heartbeat is not None:
                await stop_heartbeat()

    def _worker_names(self) -> list[str]:
        """What the places of this runner are called in the store, which knows of one rollout a worker."""
        name = self.get_worker_id()
        if self._concurrency == 1:
            return [name]
        return [f"{name}-{place}" for place in range(self._concurrency)]

    async def _work(self, shift: _Shift, worker_name: str) -> None:
        """Runs one rollout after the other."""
        while (claimed := await self._claim(shift, worker_name)) is not None:
            attempted, claim = claimed
            await self._step_impl(attempted, claim=claim)

    async def _claim(self, shift: _Shift, worker_name: str) -> _Claimed | None:
        """The next rollout for this worker; None once the shift is over."""
        async with shift.turn:
            idle_since: float | None = None
            while not shift.is_over():
                has_waited = shift.can_wait
                try:
                    claimed = await self._dequeue(shift, worker_name)
                except StoreUnavailableError as exc:
                    logger.warning("%s The store can't be reached: %s", self._log_prefix(), exc)
                    claimed, has_waited = None, False
                if claimed is not None:
                    shift.claimed += 1
                    return claimed
                if not has_waited:
                    idle_since = idle_since or time.monotonic()
                    await self._sleep(self._idle_interval(time.monotonic() - idle_since), shift)
        return None

    async def _dequeue(self, shift: _Shift, worker_name: str) -> _Claimed | None:
        """Asks the store for a rollout. What has been claimed when this is cancelled is not forgotten."""
        asking = asyncio.ensure_future(self._ask(shift, worker_name))
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError as exc:
            await asyncio.wait([asking], timeout=_CANCEL_SECONDS)
            if asking.done() and not asking.cancelled() and asking.exception() is None:
                claimed = asking.result()
                if claimed is not None:
                    await self._report(claimed[0], exc)
            raise

    async def _ask(self, shift: _Shift, worker_name: str) -> _Claimed | None:
        if self._native is not None:
            try:
                claim = await self._native.claim_rollout(worker_name, wait=_WAIT_SECONDS)
            except NotImplementedError:
                # The server is one of 0.3.
                self._native = None
            else:
                return None if claim is None else (claim.attempted, claim)
        # A store that can wait answers the moment there is work; others are asked again and again.
        options = {"wait": _WAIT_SECONDS} if shift.can_wait else {}
        attempted = await shift.store.dequeue_rollout(worker_id=worker_name, **options)
        return None if attempted is None else (attempted, None)

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

    async def _sleep(self, seconds: float, shift: _Shift) -> None:
        end = time.monotonic() + seconds
        while not shift.is_over():
            left = end - time.monotonic()
            if left <= 0:
                return
            await asyncio.sleep(min(left, _EVENT_CHECK_SECONDS))

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

    async def _step_impl(
        self, claimed: AttemptedRollout, raise_on_exception: bool = False, *, claim: Claim | None = None
    ) -> str:
        """Runs one attempt from its claim to its report, and returns the rollout's id."""
        rollout_id, attempt_id = claimed.rollout_id, claimed.attempt.attempt_id
        # Only what has come all the way is a success; cancellation in particular is not.
        failure: BaseException | None = None
        spans: list[Any] = []
        last_words: list[SpanCoreFields] = []
        hooks_started = False
        started = time.monotonic()
        try:
            if claim is None:
                await self._tell(claimed, lambda: emit_started(propagate=False))
            resources = await self._fetch_resources(claimed, claim)
            await self._call_hooks("on_rollout_start", rollout=claimed)
            hooks_started = True
            async with self._tracer.trace_context(
                name=rollout_id, rollout_id=rollout_id, attempt_id=attempt_id
            ):
                await self._call_hooks("on_trace_start", tracer=self._tracer, rollout=claimed)
                try:
                    result = _checked(await self._run_agent(claimed, resources, started))
                except (Exception, asyncio.CancelledError) as exc:
                    self._record_exception(exc)
                    raise
                await self._call_hooks("on_trace_end", tracer=self._tracer, rollout=claimed)
            if self._hooks:
                spans = await self._post_process_rollout_result(claimed, result)
            else:
                spans, last_words = await self._take_result(claimed, result)
            logger.info(
                "%s Completed in %.2fs. Collected %d span(s). Final reward: %s",
                self._log_prefix(rollout_id),
                time.monotonic() - started,
                len(spans),
                result if isinstance(result, (int, float)) else find_final_reward(spans),
            )
        except (AttemptTimedOut, RolloutCancelled) as exc:
            failure = exc
            if raise_on_exception:
                raise
            logger.error("%s The attempt was given up: %s.", self._log_prefix(rollout_id), exc)
        except Exception as exc:
            failure = exc
            if raise_on_exception:
                raise
            logger.exception("%s The attempt failed.", self._log_prefix(rollout_id))
        except BaseException as exc:
            failure = exc
            raise
        finally:
            if hooks_started:
                await self._call_hooks("on_rollout_end", rollout=claimed, spans=spans)
            await self._report(claimed, failure, last_words)
        return rollout_id

    async def _fetch_resources(self, claimed: AttemptedRollout, claim: Claim | None) -> NamedResources:
        """The resources that the rollout names, or else the latest.

        Raises:
            ResourcesMissing: if there are none.
        """
        store, resources_id = self.get_store(), claimed.resources_id
        if claim is not None:
            update = claim.resources
        elif resources_id is not None:
            update = await self._insist(lambda: store.get_resources_by_id(resources_id))
        else:
            update = await self._insist(store.get_latest_resources)
        if update is not None:
            return update.resources
        missing = "there are none" if resources_id is None else f"there are no {resources_id!r}"
        raise ResourcesMissing(
            f"{self._log_prefix(claimed.rollout_id)} Failed to fetch resources: {missing}. Add them to the "
            "store before the rollout."
        )

    async def _insist(self, call: Callable[[], Coroutine[Any, Any, R]]) -> R:
        """Makes a call that may be repeated, again and again while the store can't be reached."""
        shift = self._shift
        delay = _FIRST_IDLE_SECONDS
        stopped_at: float | None = None
        while True:
            try:
                return await call()
            except OSError as exc:
                if isinstance(exc, PermissionError):
                    # It has been reached, and won't have us.
                    raise
                if shift is None or shift.is_stopped():
                    stopped_at = stopped_at or time.monotonic()
                    if time.monotonic() - stopped_at >= _PATIENCE_AFTER_STOP_SECONDS:
                        raise
                logger.warning("%s The store can't be reached: %s", self._log_prefix(), exc)
                await asyncio.sleep(delay)
                delay = min(delay * 2, 2.0)

    async def _run_agent(
        self, claimed: AttemptedRollout, resources: NamedResources, started: float
    ) -> RolloutRawResult:
        """Runs the agent in a task of its own, for as long as the rollout's `timeout_seconds` since `started`
        allow and nobody cancels the rollout.

        A thread that an agent has when it is given up is left behind.

        Raises:
            AttemptTimedOut: if it has not ended in time.
            RolloutCancelled: if somebody has ended the rollout.
            RuntimeError: if it was cancelled, but not by whoever has cancelled this runner.
        """
        task = asyncio.ensure_future(self._call_agent(claimed, resources))
        limit = claimed.config.timeout_seconds
        end = float("inf") if limit is None else started + limit
        recall = self._recall_interval if self._recall_interval > 0 else float("inf")
        try:
            while True:
                left = end - time.monotonic()
                pause = min(max(0.0, left), recall)
                await asyncio.wait([task], timeout=None if pause == float("inf") else pause)
                if task.done():
                    break
                if left <= recall:
                    raise AttemptTimedOut(f"the agent has not ended within timeout_seconds={limit}")
                if (ended := await self._ended(claimed)) is not None:
                    raise ended
        except BaseException:
            await _cancel(task)
            raise
        if task.cancelled():
            raise RuntimeError("the agent was cancelled from within")
        return task.result()

    async def _ended(self, claimed: AttemptedRollout) -> Exception | None:
        """How somebody else has ended the rollout; None if nobody has, or the store does not say."""
        call = self.get_store().get_rollout_by_id(claimed.rollout_id)
        try:
            rollout = await asyncio.wait_for(call, self._recall_interval)
        except Exception as exc:
            logger.debug("%s No news of the rollout: %r", self._log_prefix(claimed.rollout_id), exc)
            return None
        if rollout is None or rollout.status not in _ENDED:
            return None
        latest = rollout.attempt if isinstance(rollout, AttemptedRollout) else None
        if latest and latest.attempt_id == claimed.attempt.attempt_id and latest.status == "timeout":
            # The store's clock was the first to say so.
            return AttemptTimedOut("the store has seen the attempt's time run out")
        return RolloutCancelled(f"the rollout became {rollout.status} while the agent was at work")

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
        self,
        claimed: AttemptedRollout,
        failure: BaseException | None,
        last_words: Sequence[SpanCoreFields] = (),
    ) -> None:
        """Tells the store how the attempt has ended: well, without a failure. `last_words` are stored
        before."""
        store = self.get_store()
        status: AttemptStatus = "succeeded"
        changes: dict[str, Any] = {}
        if failure is not None:
            status = "timeout" if isinstance(failure, AttemptTimedOut) else "failed"
            reason, recorded = _reason(failure), exception_attributes(failure)
            changes["metadata"] = {
                **(claimed.attempt.metadata or {}),
                "reason": reason,
                "failure": {"type": recorded["exception.type"], "message": recorded["exception.message"]},
            }
            # Kept from the tracer, which may be what has failed.
            last_words = [emit_failed(failure, reason=reason, propagate=False)]
        may_be_over = isinstance(failure, (AttemptTimedOut, RolloutCancelled))
        ids = claimed.rollout_id, claimed.attempt.attempt_id
        spans = _as_spans(ids, last_words)

        async def report() -> None:
            is_over = may_be_over and await self._given_up_already(store, claimed)
            if self._native is not None and not is_over:
                try:
                    await self._native.end_attempt(*ids, spans=spans, status=status, **changes)
                except NotImplementedError:
                    # The server is one of 0.3.
                    self._native = None
                else:
                    return
            if spans:
                await store.append_spans(spans)
            if not is_over:
                await store.update_attempt(*ids, status=status, **changes)

        try:
            await self._insist(report)
        except Exception:
            logger.exception(
                "%s Failed to report the attempt as %s.", self._log_prefix(claimed.rollout_id), status
            )

    async def _tell(self, claimed: AttemptedRollout, state: Callable[[], SpanCoreFields]) -> None:
        """Records a state event of the attempt. That this fails is no reason for the attempt to fail."""
        try:
            await self._store_cores((claimed.rollout_id, claimed.attempt.attempt_id), [state()])
        except Exception:
            logger.exception("%s A state event is lost.", self._log_prefix(claimed.rollout_id))

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
        spans, last_words = await self._take_result(rollout, raw_result)
        await self._store_cores((rollout.rollout_id, rollout.attempt.attempt_id), last_words)
        return spans

    async def _take_result(
        self, rollout: AttemptedRollout, raw_result: RolloutRawResult
    ) -> tuple[list[Any], list[SpanCoreFields]]:
        """Stores the spans that the agent has returned; gives those that there are, and those that are to
        follow: the reward, and the attempt's end."""
        result = _checked(raw_result)
        ids = rollout.rollout_id, rollout.attempt.attempt_id
        finished = emit_finished(propagate=False)
        if result is None:
            return list(self._tracer.get_last_trace()), [finished]
        if isinstance(result, (bool, int)):
            logger.warning(
                "%s Reward is not a number of type float but %r. Auto converting to float.",
                self._log_prefix(rollout.rollout_id),
                result,
            )
        if isinstance(result, (int, float)):
            reward = emit_reward(float(result), propagate=False)
            return list(self._tracer.get_last_trace()), [reward, finished]
        if not result:
            logger.warning(
                "%s The agent returned an empty list of spans.", self._log_prefix(rollout.rollout_id)
            )
        return await self._store_spans(ids, result), [finished]

    async def _store_cores(self, ids: tuple[str, str], cores: Sequence[SpanCoreFields]) -> list[Span]:
        """Stores spans under the next sequence ids, in this order."""
        store, spans = self.get_store(), _as_spans(ids, cores)
        await self._insist(lambda: store.append_spans(spans))
        return spans

    async def _store_spans(self, ids: tuple[str, str], raw: list[Any]) -> list[Any]:
        from opentelemetry.sdk.trace import ReadableSpan

        store = self.get_store()
        if not raw:
            return []
        if isinstance(raw[0], Span):
            for span in raw:
                await self._insist(lambda span=span: store.add_span(span))  # type: ignore[misc]
            return raw
        if isinstance(raw[0], SpanCoreFields):
            return await self._store_cores(ids, raw)
        if isinstance(self._tracer, OtelTracer):
            logger.warning(
                "%s Tracer is already an OpenTelemetry tracer. Returned spans may be recorded twice.",
                self._log_prefix(ids[0]),
            )
        added: list[Any] = []
        for readable in cast("list[ReadableSpan]", raw):
            span = await store.add_otel_span(*ids, readable)
            if span is None:
                logger.error("%s Failed to add span %r.", self._log_prefix(ids[0]), readable.name)
            else:
                added.append(span)
        return added

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
        try:
            snapshot = await asyncio.wait_for(
                asyncio.to_thread(system_snapshot, self._heartbeat_include_gpu), self._heartbeat_interval
            )
            await asyncio.wait_for(self._beat(store, snapshot), self._heartbeat_interval)
        except asyncio.TimeoutError:
            logger.warning("%s Heartbeat timed out.", self._log_prefix())
        except Exception:
            logger.exception("%s Heartbeat failed.", self._log_prefix())

    async def _beat(self, store: LightningStore, snapshot: dict[str, Any]) -> None:
        for name in self._worker_names():
            await store.update_worker(name, snapshot)

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
                                asyncio.wait_for(self._beat(store, snapshot), self._heartbeat_interval)
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


# A rollout with the attempt at it, and what has come with it from a store that gives more.
_Claimed: TypeAlias = "tuple[AttemptedRollout, Claim | None]"


class _Shift:
    """One call of `iter`: what its places share."""

    def __init__(self, store: LightningStore, event: ExecutionEvent | None, max_rollouts: int | None) -> None:
        self.store = store
        self.can_wait = _can_wait(store)
        self.claimed = 0
        self.closed = False
        # One place at a time waits for work; more would only ask more often.
        self.turn = asyncio.Lock()
        self._event = event
        self._max_rollouts = max_rollouts

    def is_stopped(self) -> bool:
        """Whether the runner was told to stop."""
        return self._event is not None and self._event.is_set()

    def is_over(self) -> bool:
        """Whether no more rollouts are to be claimed."""
        has_enough = self._max_rollouts is not None and self.claimed >= self._max_rollouts
        return self.closed or has_enough or self.is_stopped()


async def _side_by_side(workers: list[Coroutine[Any, Any, None]], shift: _Shift) -> None:
    """Runs workers in tasks of their own. If one fails, the others finish what they are at."""
    tasks = [asyncio.ensure_future(worker) for worker in workers]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        shift.closed = True
        await asyncio.wait(tasks)
    except asyncio.CancelledError:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        raise
    for task in tasks:
        task.result()


def _checked(raw: Any) -> RolloutRawResult:
    """What an agent has returned, if it is something that an agent may return.

    Raises:
        TypeError: if it is neither None, a number nor a list.
        ValueError: if it is a list that is not all spans of one kind.
    """
    if raw is not None and not isinstance(raw, (int, float, list)):
        raise TypeError(f"Invalid raw result type: {type(raw)}. Expected None, a float, or a list of spans.")
    if isinstance(raw, list) and raw:
        from opentelemetry.sdk.trace import ReadableSpan

        kinds = (Span, SpanCoreFields, ReadableSpan)
        if not any(all(isinstance(item, kind) for item in raw) for kind in kinds):
            found = ", ".join(sorted({type(item).__name__ for item in raw}))
            raise ValueError(f"Invalid raw result type: a list of {found}. Expected spans of one kind.")
    return cast("RolloutRawResult", raw)


def _reason(failure: BaseException) -> str:
    """Why an attempt has not succeeded, in a word."""
    if isinstance(failure, AttemptTimedOut):
        return "timeout"
    if isinstance(failure, ResourcesMissing):
        return "missing_resources"
    # What is no Exception is somebody's wish to end: a cancellation, Ctrl+C.
    if isinstance(failure, RolloutCancelled) or not isinstance(failure, Exception):
        return "cancelled"
    return "error"


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


def _native_behind(store: LightningStore) -> NativeStore | None:
    """The store of the Rust core that calls end up at, unless somebody has put methods of their own there."""
    while type(store) in (LightningStoreServer, LightningStoreThreaded):
        store = cast("DelegatingStore", store)._target()
    return store if isinstance(store, NativeStore) and store.is_whole else None


def _can_wait(store: LightningStore) -> bool:
    """Whether a store can be asked to wait for work; a user's own may not know how."""
    return "wait" in inspect.signature(innermost(store).dequeue_rollout).parameters


def _as_spans(ids: tuple[str, str], cores: Sequence[SpanCoreFields]) -> list[Span]:
    return [
        Span.from_core_fields(core, rollout_id=ids[0], attempt_id=ids[1], sequence_id=0) for core in cores
    ]
