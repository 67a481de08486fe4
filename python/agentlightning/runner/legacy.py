"""`LegacyAgentRunner`: runs an agent on the tasks of a legacy server. Deprecated."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import json
import logging
import threading
import warnings
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from agentlightning.emitter.exception import emit_exception
from agentlightning.emitter.reward import find_final_reward
from agentlightning.emitter.state import emit_failed, emit_finished, emit_started
from agentlightning.litagent.litagent import is_v0_1_rollout_api, running_runner
from agentlightning.runner.base import Runner
from agentlightning.semconv import AGL_STATE
from agentlightning.tracer.base import get_active_tracer
from agentlightning.tracer.resources import active_resources
from agentlightning.types import RolloutLegacy, Span, Triplet

if TYPE_CHECKING:
    from agentlightning.adapter import TraceAdapter
    from agentlightning.client import AgentLightningClient
    from agentlightning.execution.events import ExecutionEvent
    from agentlightning.litagent.litagent import LitAgent
    from agentlightning.tracer.base import Tracer
    from agentlightning.types import NamedResources, Task

__all__ = ["LegacyAgentRunner", "LegacyRunner"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_EVENT_CHECK_SECONDS = 0.1


class LegacyAgentRunner(Runner[Any]):
    """Fetches tasks through an `AgentLightningClient`, runs an agent on each inside a trace, and brings back
    what came of it. Deprecated: use `LitAgentRunner`.

    Like that one it notes in the trace when the agent starts, and how it ends.

    `init` and `init_worker` set the tracer up, unless it has been already.
    """

    def __init__(
        self,
        agent: LitAgent[Any],
        client: AgentLightningClient,
        tracer: Tracer,
        triplet_exporter: TraceAdapter[list[Triplet]],
        worker_id: int | None = None,
        max_tasks: int | None = None,
    ) -> None:
        """Makes a runner.

        Args:
            agent: The agent to run.
            client: Where tasks come from and results go to.
            tracer: Records what the agent does.
            triplet_exporter: Reads the triplets out of a trace.
            worker_id: The worker's number, for the log.
            max_tasks: After how many tasks `iter` ends; never by default.
        """
        super().__init__()
        warnings.warn(
            "LegacyAgentRunner is deprecated. Use LitAgentRunner.", DeprecationWarning, stacklevel=2
        )
        self.agent = agent
        self.client = client
        self.tracer = tracer
        self.triplet_exporter = triplet_exporter
        self.worker_id = worker_id
        self.max_tasks = max_tasks
        agent.set_runner(self)

    # Setting up

    def init(self, agent: LitAgent[Any] | None = None, **kwargs: Any) -> None:
        """Sets the tracer up. The agent is the constructor's unless another one is given."""
        if agent is not None:
            self.agent = agent
        self.agent.set_runner(self)
        self.tracer.init()

    def init_worker(self, worker_id: int, store: Any = None, **kwargs: Any) -> None:
        """Takes the worker's number and sets the tracer up. The store is of no use here."""
        self.worker_id = worker_id
        self.tracer.init_worker(worker_id)

    def teardown_worker(self, worker_id: int, *args: Any, **kwargs: Any) -> None:
        """Undoes `init_worker`."""
        self.tracer.teardown_worker(worker_id)

    def teardown(self, *args: Any, **kwargs: Any) -> None:
        """Undoes `init`."""
        self.tracer.teardown()

    # Working

    def run(self) -> bool:  # type: ignore[override]
        """Waits for a task and runs it; False if there was none."""
        return _blocking(self.run_async())

    async def run_async(self) -> bool:
        """Waits for a task and runs it; False if there was none."""
        task = await self.client.poll_next_task_async()
        if task is None:
            logger.info("%s There is no task.", self._log_prefix())
            return False
        await self._run_task(task)
        return True

    def iter(self) -> int:  # type: ignore[override]
        """Runs tasks, `max_tasks` at most, until there are none, and returns how many."""
        return _blocking(self.iter_async())

    async def iter_async(self, *, event: ExecutionEvent | None = None) -> int:
        """Runs tasks, `max_tasks` at most, until there are none or `event` is set, and returns how many."""
        done = 0
        while self.max_tasks is None or done < self.max_tasks:
            task = await self._next_task(event)
            if task is None:
                break
            await self._run_task(task)
            done += 1
        logger.info("%s Ran %d task(s).", self._log_prefix(), done)
        return done

    async def _next_task(self, event: ExecutionEvent | None) -> Task | None:
        polling = asyncio.ensure_future(self.client.poll_next_task_async())
        try:
            while not polling.done() and not (event is not None and event.is_set()):
                await asyncio.wait([polling], timeout=None if event is None else _EVENT_CHECK_SECONDS)
            return polling.result() if polling.done() else None
        finally:
            # A request under way may still claim something, which the server will hand out again.
            polling.cancel()

    async def _run_task(self, task: Task) -> None:
        """Runs the agent on a task. Whatever goes wrong is told with the result, which is always brought
        back."""
        prefix = self._log_prefix(task.rollout_id)
        rollout = RolloutLegacy(rollout_id=task.rollout_id, task=task)
        traced = False
        try:
            resources = await self._fetch_resources(task)
            self._call_hook("on_rollout_start", task, self, self.tracer)
            async with self.tracer.trace_context(name=f"rollout_{task.rollout_id}"):
                traced = True
                # Tracers of one's own need not take what is emitted.
                emits = get_active_tracer() is not None
                if emits:
                    emit_started()
                try:
                    # A task has a context of its own.
                    result = await asyncio.create_task(self._call_agent(task, resources, rollout))
                except BaseException as error:
                    if emits:
                        if isinstance(error, Exception):
                            emit_exception(error)
                        emit_failed(error)
                    raise
                if emits:
                    emit_finished()
            rollout = self._to_rollout(rollout, result, list(self.tracer.get_last_trace()))
        except Exception as error:
            logger.exception("%s The agent has failed.", prefix)
            rollout.metadata["failure_reason"] = f"{type(error).__name__}: {error}"
            if traced:
                rollout.trace = [_as_dict(span) for span in self.tracer.get_last_trace()] or None
        self._call_hook("on_rollout_end", task, rollout, self, self.tracer)
        try:
            await self.client.post_rollout_async(rollout)
        except Exception:
            logger.exception("%s The result could not be brought back.", prefix)

    async def _fetch_resources(self, task: Task) -> NamedResources:
        if task.resources_id is not None:
            update = await self.client.get_resources_by_id_async(task.resources_id)
        else:
            update = await self.client.get_latest_resources_async()
        if update is None:
            raise RuntimeError(f"Failed to fetch resources {task.resources_id or 'latest'!r}.")
        return update.resources

    async def _call_agent(self, task: Task, resources: NamedResources, rollout: RolloutLegacy) -> Any:
        method = self.agent.rollout_method(task.mode)
        arguments: dict[str, Any] = {"resources": resources}
        if is_v0_1_rollout_api(method):
            arguments["rollout_id"] = task.rollout_id
        else:
            arguments["rollout"] = rollout
        running_runner.set(self)
        active_resources.set(resources)
        if inspect.iscoroutinefunction(method):
            return await method(task.input, **arguments)
        return await asyncio.to_thread(method, task.input, **arguments)

    def _call_hook(self, name: str, *args: Any) -> None:
        try:
            getattr(self.agent, name)(*args)
        except Exception:
            logger.exception("%s Exception in the agent's %s.", self._log_prefix(), name)

    def _to_rollout(self, rollout: RolloutLegacy, result: Any, trace: list[Span]) -> RolloutLegacy:
        """What is brought back: the agent's result, completed by what its trace holds."""
        found: dict[str, Any] = {}
        spans: Sequence[Any] = trace
        if isinstance(result, RolloutLegacy):
            fields = {name: getattr(result, name) for name in ("final_reward", "triplets", "trace", "logs")}
            found = {name: value for name, value in fields.items() if value is not None}
            rollout.metadata.update(result.metadata)
        elif isinstance(result, (bool, int, float)):
            found["final_reward"] = float(result)
        elif isinstance(result, list) and result:
            if all(isinstance(item, Triplet) for item in result):
                found["triplets"] = result
            elif all(isinstance(item, dict) for item in result):
                found["trace"] = result
            elif all(isinstance(item, Span) or hasattr(item, "to_json") for item in result):
                spans = result
            else:
                kinds = sorted({type(item).__name__ for item in result})
                raise TypeError(f"Invalid raw result type: a list of {', '.join(kinds)}.")
        elif result is not None and result != []:
            raise TypeError(f"Invalid raw result type: {type(result)}.")
        if spans:
            found.setdefault("trace", [_as_dict(span) for span in spans])
            # What the runner has noted itself is no part of what the agent has done.
            done = [span for span in spans if span.name != AGL_STATE]
            if done and "triplets" not in found:
                try:
                    found["triplets"] = self.triplet_exporter.adapt(done)
                except Exception:
                    logger.exception("%s The trace can't be read.", self._log_prefix(rollout.rollout_id))
        if "final_reward" not in found:
            triplets: Sequence[Triplet] = found.get("triplets") or ()
            last = triplets[-1].reward if triplets else None
            found["final_reward"] = last if last is not None else find_final_reward(spans)
        return rollout.model_copy(update=found)

    def _log_prefix(self, rollout_id: str | None = None) -> str:
        prefix = f"[Worker {self.worker_id}]" if self.worker_id is not None else "[Worker]"
        return f"{prefix} [Rollout {rollout_id}]" if rollout_id else prefix


LegacyRunner = LegacyAgentRunner


def _as_dict(span: Any) -> dict[str, Any]:
    """A span as JSON values: ours as the store has it, OpenTelemetry's in its own form."""
    found: dict[str, Any] = (
        span.model_dump(mode="json") if isinstance(span, Span) else json.loads(span.to_json())
    )
    return found


def _blocking(work: Coroutine[Any, Any, T]) -> T:
    """Runs something asynchronous to its end: on this thread, or, where it has a running loop, another."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["result"] = asyncio.run(work)
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), daemon=True)
    thread.start()
    thread.join()
    if "error" in outcome:
        raise outcome["error"]
    result: T = outcome["result"]
    return result
