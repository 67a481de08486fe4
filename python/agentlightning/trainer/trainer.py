"""`Trainer`: puts agent, algorithm, runners and store together, and runs them."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import copy
import functools
import inspect
import logging
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Coroutine, Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from agentlightning.adapter import TraceAdapter, TracerTraceToTriplet
from agentlightning.algorithm.base import Algorithm
from agentlightning.algorithm.fast import Baseline, FastAlgorithm
from agentlightning.execution._signals import terminated_like_interrupted
from agentlightning.execution.base import ExecutionStrategy
from agentlightning.execution.client_server import ClientServerExecutionStrategy
from agentlightning.litagent.litagent import LitAgent
from agentlightning.runner.agent import LitAgentRunner
from agentlightning.runner.base import Runner
from agentlightning.store.base import LightningStore
from agentlightning.tracer.base import Tracer
from agentlightning.tracer.otel import OtelTracer
from agentlightning.trainer.init_utils import build_component, instantiate_component, instantiate_from_spec
from agentlightning.trainer.legacy import TrainerLegacy
from agentlightning.trainer.registry import ExecutionStrategyRegistry
from agentlightning.types import Hook

if TYPE_CHECKING:
    from agentlightning.execution.events import ExecutionEvent
    from agentlightning.types import Dataset, NamedResources

logger = logging.getLogger(__name__)

T = TypeVar("T")

_INVALID = "Invalid {spec_name} type: {actual_type}. Expected {expected_type}, str, dict, or None."
_IDLE_SECONDS = 0.1


class _RunnerBundle(Generic[T]):
    """What one worker does. Made of nothing but runner, agent and hooks, so that it can go to another
    process."""

    def __init__(self, runner: Runner[T], agent: LitAgent[T], hooks: Sequence[Hook]) -> None:
        self.runner = runner
        self.agent = agent
        self.hooks = hooks

    async def __call__(self, store: LightningStore, worker_id: int, event: ExecutionEvent) -> None:
        # Workers of one process must not share what changes from one to the next.
        for_worker = getattr(self.runner, "for_worker", None)
        runner: Runner[T] = copy.copy(self.runner) if for_worker is None else for_worker()
        runner.init(agent=self.agent, hooks=self.hooks)
        try:
            runner.init_worker(worker_id, store)
            try:
                await runner.iter(event=event)
            finally:
                _logged("runner worker teardown", lambda: runner.teardown_worker(worker_id))
        finally:
            _logged("runner teardown", runner.teardown)


def _logged(what: str, action: Callable[[], Any]) -> None:
    """Does something whose failure must not hide another one."""
    try:
        action()
    except Exception:
        logger.exception("Error during %s", what)


class Trainer(TrainerLegacy):
    """Puts agent, algorithm, runners and store together, and runs them.

    Every component may be given as an instance, a class, a factory, an import path, or a dict with a `type`
    and arguments. Without an algorithm, tasks are run once each and summed up (`Baseline`).
    """

    def __init__(
        self,
        *,
        dev: bool = False,
        n_runners: int | None = None,
        max_rollouts: int | None = None,
        initial_resources: NamedResources | None = None,
        tracer: Any = None,
        adapter: Any = None,
        store: Any = None,
        runner: Any = None,
        strategy: Any = None,
        port: int | None = None,
        algorithm: Any = None,
        llm_proxy: Any = None,
        n_workers: int | None = None,
        max_tasks: int | None = None,
        daemon: bool = True,
        triplet_exporter: Any = None,
        hooks: Hook | Sequence[Hook] | None = None,
        progress: bool | None = None,
    ) -> None:
        """Makes a trainer.

        Args:
            dev: Deprecated; read by `fit_v0` only.
            n_runners: How many runners to run; 1 by default.
            max_rollouts: How many rollouts each runner runs at most.
            initial_resources: What agents get from the start, such as a model endpoint or a prompt.
            tracer: Records what agents do; an `OtelTracer` by default.
            adapter: Reads spans into training data; a `TracerTraceToTriplet` by default, for which a dict
                without a `type` holds the arguments.
            store: Where everything is kept; in memory by default.
            runner: Runs the agent; a `LitAgentRunner` by default.
            strategy: How both sides are run: `cs` (processes, the default), `shm` (threads), or one's own.
            port: On which port the store is served.
            algorithm: What learns; `Baseline` by default.
            llm_proxy: A model gateway.
            n_workers: Deprecated name of `n_runners`.
            max_tasks: Deprecated name of `max_rollouts`.
            daemon: Without effect.
            triplet_exporter: Deprecated name of `adapter`.
            hooks: Called around each attempt.
            progress: Whether to show, on standard error, a bar with rollouts, reward, tokens and errors, and
                a summary at the end; by default where that is a terminal.
        """
        self._dev = dev
        self.daemon = daemon
        if not daemon:
            logger.warning(
                "daemon=False has no effect: runners always end with the process that started them."
            )
        n_runners = _renamed("n_workers", n_workers, "n_runners", n_runners)
        max_rollouts = _renamed("max_tasks", max_tasks, "max_rollouts", max_rollouts)
        adapter = _renamed("triplet_exporter", triplet_exporter, "adapter", adapter)

        self.n_runners: int = n_runners or 1
        self.max_rollouts = max_rollouts
        self.initial_resources = initial_resources
        self.port = port
        self.progress = progress
        self._agent: LitAgent[Any] | None = None
        self._lock = threading.Lock()
        self._is_running = False
        self._stops = False
        self._run: _Run | None = None

        self.tracer: Tracer = build_component(
            tracer,
            expected_type=Tracer,
            spec_name="tracer",
            default_factory=OtelTracer,
            invalid_spec_error_fmt=_INVALID,
        )
        self.adapter: TraceAdapter[Any] = build_component(
            adapter,
            expected_type=TraceAdapter,
            spec_name="adapter",
            default_factory=TracerTraceToTriplet,
            dict_requires_type=False,
            dict_default_cls=TracerTraceToTriplet,
            invalid_spec_error_fmt=_INVALID,
        )
        self.algorithm: Algorithm | None = build_component(
            algorithm,
            expected_type=Algorithm,
            spec_name="algorithm",
            allow_none=True,
            invalid_spec_error_fmt=_INVALID,
        )
        strategy_defaults: dict[str, Any] = {"n_runners": lambda: self.n_runners}
        if port is not None:
            strategy_defaults["server_port"] = lambda: port
        self.strategy: ExecutionStrategy = build_component(
            strategy,
            expected_type=ExecutionStrategy,
            spec_name="strategy",
            default_factory=lambda: ClientServerExecutionStrategy(n_runners=self.n_runners, server_port=port),
            optional_defaults=strategy_defaults,
            invalid_spec_error_fmt=_INVALID,
            registry=ExecutionStrategyRegistry,
        )
        if (
            port is not None
            and isinstance(self.strategy, ClientServerExecutionStrategy)
            and strategy is self.strategy
        ):
            self.strategy.server_port = port
        self.store: LightningStore = build_component(
            store,
            expected_type=LightningStore,
            spec_name="store",
            default_factory=self._default_store,
            invalid_spec_error_fmt=_INVALID,
        )
        runner_defaults: dict[str, Any] = {"tracer": lambda: self.tracer}
        if max_rollouts is not None:
            runner_defaults["max_rollouts"] = lambda: max_rollouts
        self.runner: Runner[Any] = build_component(
            LitAgentRunner if runner is None else runner,
            expected_type=Runner,
            spec_name="runner",
            optional_defaults=runner_defaults,
            invalid_spec_error_fmt=_INVALID,
        )
        strategy_runners = getattr(self.strategy, "n_runners", None)
        if isinstance(strategy_runners, int) and strategy_runners > 0:
            self.n_runners = strategy_runners
        self.llm_proxy: Any = self._build_llm_proxy(llm_proxy)
        self.hooks: tuple[Hook, ...] = _as_hooks(hooks)

    @property
    def n_workers(self) -> int:
        """Former name of `n_runners`."""
        return self.n_runners

    @property
    def max_tasks(self) -> int | None:
        """Former name of `max_rollouts`."""
        return self.max_rollouts

    def _default_store(self) -> LightningStore:
        from agentlightning.store import InMemoryLightningStore

        return InMemoryLightningStore(thread_safe=isinstance(self.strategy, ClientServerExecutionStrategy))

    def _build_llm_proxy(self, spec: Any) -> Any:
        # Gateways have no common class here, so what is neither a name, a dict nor a class is taken for one.
        defaults = {"store": lambda: self.store}
        if isinstance(spec, (str, dict)):
            return instantiate_from_spec(spec, spec_name="llm_proxy", optional_defaults=defaults)
        if isinstance(spec, type):
            return instantiate_component(spec, None, defaults)
        return spec

    # Running

    def add_agent(self, agent: LitAgent[Any]) -> None:
        """Takes the agent that `run`, and `fit` without one, will train.

        Raises:
            TypeError: for something that is no agent.
            ValueError: if there is one already.
        """
        agent = _checked_agent(agent)
        if self._agent is not None:
            raise ValueError(
                "This trainer has an agent already; training several agents at once is not supported yet."
            )
        self._agent = agent

    async def run(
        self, train_dataset: Dataset[Any] | None = None, val_dataset: Dataset[Any] | None = None
    ) -> Any:
        """Trains the agent that was added, inside a running event loop.

        Args:
            train_dataset: The tasks to learn from.
            val_dataset: The tasks to be judged by.

        Returns:
            What the algorithm returns; without an algorithm, a `RunSummary`.

        Raises:
            ValueError: without an agent.
        """
        with terminated_like_interrupted():
            return await self._execute_in_thread(
                self._require_agent(None), self.algorithm, train_dataset, val_dataset
            )

    def fit(
        self,
        agent: LitAgent[Any] | None = None,
        train_dataset: Dataset[Any] | None = None,
        *,
        val_dataset: Dataset[Any] | None = None,
    ) -> Any:
        """Trains an agent: `run`'s twin for code that is not asynchronous.

        Args:
            agent: The agent; the one that was added by default.
            train_dataset: The tasks to learn from. Deprecated: a legacy server's URL, for `fit_v0`.
            val_dataset: The tasks to be judged by.

        Returns:
            What the algorithm returns; without an algorithm, a `RunSummary`. Without algorithm and tasks,
            runners serve the store until they are stopped. None after Ctrl+C.

        Raises:
            ValueError: without an agent.
            TypeError: for something else than an agent.
        """
        if isinstance(train_dataset, str):
            warnings.warn(
                "fit() with a server's URL is deprecated. Give it datasets.", DeprecationWarning, stacklevel=2
            )
            return self.fit_v0(self._require_agent(agent), train_dataset, val_data=val_dataset)
        return self._execute_here(self._require_agent(agent), self.algorithm, train_dataset, val_dataset)

    def dev(
        self,
        agent: LitAgent[Any] | None = None,
        train_dataset: Dataset[Any] | None = None,
        *,
        val_dataset: Dataset[Any] | None = None,
    ) -> Any:
        """Tries an agent out with a fast algorithm, `Baseline` by default. Arguments and result are those of
        `fit`.

        Raises:
            TypeError: for an algorithm that is no `FastAlgorithm`.
        """
        if isinstance(train_dataset, str):
            raise TypeError("dev() takes datasets. Training against a server's URL ended with version 0.2.")
        algorithm = self.algorithm or Baseline()
        if not isinstance(algorithm, FastAlgorithm):
            raise TypeError(f"Trainer.dev() needs a FastAlgorithm, such as Baseline, got {type(algorithm)}.")
        return self._execute_here(self._require_agent(agent), algorithm, train_dataset, val_dataset)

    # The life of a run

    def start(
        self,
        agent: LitAgent[Any] | None = None,
        train_dataset: Dataset[Any] | None = None,
        *,
        val_dataset: Dataset[Any] | None = None,
    ) -> None:
        """Begins what `fit` does and returns at once; `wait` has the result. Arguments are those of `fit`.

        The run ends with the process, in order.

        Raises:
            RuntimeError: while another run is under way.
        """
        agent = self._require_agent(agent)
        self._claim()
        self._run = _Run(lambda: self._execute(agent, self.algorithm, train_dataset, val_dataset))
        atexit.register(self._end_at_exit)

    def wait(self, timeout: float | None = None) -> Any:
        """Waits for the run that `start` has begun, and returns what `fit` would return. Ctrl+C calls it off.

        Args:
            timeout: Seconds to wait at most.

        Raises:
            RuntimeError: if no run was started.
            TimeoutError: if it has not ended by then; it goes on.
            Exception: what `fit` would raise.
        """
        run = self._run
        if run is None:
            raise RuntimeError("There is no run to wait for: call start() first.")
        with terminated_like_interrupted(), _interrupts() as interrupted:
            if not run.join(timeout, interrupted, self.stop):
                raise TimeoutError(f"The run has not ended within {timeout} seconds.")
        atexit.unregister(self._end_at_exit)
        return run.outcome()

    def stop(self) -> None:
        """Calls the run under way off, from any thread: algorithm and runners end, and rollouts that they are
        at are cancelled. Returns at once; whoever waits for the run gets None."""
        with self._lock:
            if not self._is_running:
                return
            self._stops = True
        self.strategy.request_stop()

    def pause(self) -> None:
        """Has the store give out no more rollouts, until `resume`. Those under way go on, and so does the
        algorithm. It outlasts this process where the store does. `agl pause` does the same to a store that is
        served."""
        _blocking(self.store.pause())

    def resume(self) -> None:
        """Has the store give out rollouts again."""
        _blocking(self.store.resume())

    @property
    def state(self) -> Literal["idle", "running", "paused", "stopping"]:
        """What the trainer is at; `paused` while its run goes on and the store gives out no rollouts."""
        with self._lock:
            if not self._is_running:
                return "idle"
            if self._stops:
                return "stopping"
        return "paused" if _blocking(_is_paused(self.store)) else "running"

    def _claim(self) -> None:
        """Notes that a run is under way.

        Raises:
            RuntimeError: if one is already.
        """
        with self._lock:
            if self._is_running:
                raise RuntimeError("This trainer is running already: wait for its end, or stop() it.")
            self._is_running = True
            self._stops = False

    def _end_at_exit(self) -> None:
        self.stop()
        if self._run is not None:
            self._run.join(None, threading.Event(), self.stop)

    def _require_agent(self, agent: LitAgent[Any] | None) -> LitAgent[Any]:
        agent = agent if agent is not None else self._agent
        if agent is None and isinstance(self.runner, LitAgentRunner):
            agent = self.runner.own_agent
        if agent is None:
            raise ValueError("There is no agent: give one to fit(), or call add_agent() first.")
        return _checked_agent(agent)

    def _execute_here(self, agent: LitAgent[Any], *args: Any) -> Any:
        """Blocks until all is done, on this thread, or, where it has a running event loop, on another."""
        self._claim()
        if not _inside_loop():
            return self._execute(agent, *args)
        # The loop's own way with Ctrl+C is to cancel the task that is blocked here.
        with terminated_like_interrupted(), _interrupts() as interrupted:
            run = _Run(lambda: self._execute(agent, *args))
            run.join(None, interrupted, self.stop)
        return run.outcome()

    async def _execute_in_thread(self, agent: LitAgent[Any], *args: Any) -> Any:
        """Leaves this thread's event loop free until all is done."""
        self._claim()
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()

        def settle(result: Any, error: BaseException | None) -> None:
            if done.done():
                return
            if error is None:
                done.set_result(result)
            else:
                done.set_exception(error)

        def target() -> None:
            result, error = None, None
            try:
                result = self._execute(agent, *args)
            except BaseException as exc:
                error = exc
            loop.call_soon_threadsafe(settle, result, error)

        threading.Thread(target=target, name="trainer", daemon=True).start()
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            # Runners must not outlive whoever has been waiting for them.
            self.stop()
            await asyncio.wait([done])
            if done.exception() is not None:
                logger.error("The run that was cancelled has failed, too.", exc_info=done.exception())
            raise

    def _execute(
        self,
        agent: LitAgent[Any],
        algorithm: Algorithm | None,
        train_dataset: Dataset[Any] | None,
        val_dataset: Dataset[Any] | None,
    ) -> Any:
        try:
            agent.set_trainer(self)
            if algorithm is None and (train_dataset is not None or val_dataset is not None):
                algorithm = Baseline()
            algorithm_bundle = functools.partial(
                self._algorithm_bundle,
                algorithm=algorithm,
                train_dataset=train_dataset,
                val_dataset=val_dataset,
            )
            runner_bundle = _RunnerBundle(self.runner, agent, self.hooks)
            return self.strategy.execute(algorithm_bundle, runner_bundle, self.store)
        finally:
            with self._lock:
                self._is_running = False

    async def _algorithm_bundle(
        self,
        store: LightningStore,
        event: ExecutionEvent,
        algorithm: Algorithm | None,
        train_dataset: Dataset[Any] | None,
        val_dataset: Dataset[Any] | None,
    ) -> Any:
        if self._stops:
            # It was called off before there was anything to call off.
            self.strategy.request_stop()
        if await _is_paused(store):
            logger.warning("The store is paused: runners get no rollouts until resume() or `agl resume`.")
        monitor: contextlib.AbstractAsyncContextManager[Any] = contextlib.nullcontext()
        if sys.stderr.isatty() if self.progress is None else self.progress:
            from agentlightning.trainer.progress import RunMonitor

            monitor = RunMonitor(store, sys.stderr)
        async with monitor:
            return await self._run_algorithm(store, event, algorithm, train_dataset, val_dataset)

    async def _run_algorithm(
        self,
        store: LightningStore,
        event: ExecutionEvent,
        algorithm: Algorithm | None,
        train_dataset: Dataset[Any] | None,
        val_dataset: Dataset[Any] | None,
    ) -> Any:
        if algorithm is None:
            while not event.is_set():  # noqa: ASYNC110 - the event is shared with other threads
                await asyncio.sleep(_IDLE_SECONDS)
            return None
        algorithm.set_trainer(self)
        algorithm.set_store(store)
        algorithm.set_adapter(self.adapter)
        if self.initial_resources is not None:
            algorithm.set_initial_resources(self.initial_resources)
        if self.llm_proxy is not None:
            self.llm_proxy.set_store(store)
            algorithm.set_llm_proxy(self.llm_proxy)
        try:
            result = algorithm.run(train_dataset=train_dataset, val_dataset=val_dataset)
            return await result if inspect.isawaitable(result) else result
        except Exception:
            logger.exception("The algorithm has failed.")
            raise


class _Run:
    """Something that runs in a thread of its own."""

    def __init__(self, target: Callable[[], Any]) -> None:
        self._result: Any = None
        self._error: BaseException | None = None
        self._done = threading.Event()

        def run() -> None:
            try:
                self._result = target()
            except BaseException as exc:
                self._error = exc
            finally:
                self._done.set()

        threading.Thread(target=run, name="trainer", daemon=True).start()

    def join(self, timeout: float | None, interrupted: threading.Event, stop: Callable[[], None]) -> bool:
        """Waits for its end, and says whether it has come; calls `stop` when interrupted."""
        end = None if timeout is None else time.monotonic() + timeout
        while not self._done.wait(_IDLE_SECONDS):
            if interrupted.is_set():
                stop()
            elif end is not None and time.monotonic() >= end:
                return False
        return True

    def outcome(self) -> Any:
        """What it has returned; what it has raised is raised."""
        if self._error is not None:
            raise self._error
        return self._result


async def _is_paused(store: LightningStore) -> bool:
    try:
        return await store.is_paused()
    except NotImplementedError:
        return False


def _blocking(call: Coroutine[Any, Any, T]) -> T:
    """Runs a call of a store to its end, also where this thread has a running event loop."""
    if not _inside_loop():
        return asyncio.run(call)
    run = _Run(lambda: asyncio.run(call))
    run.join(None, threading.Event(), lambda: None)
    result: T = run.outcome()
    return result


def _checked_agent(agent: Any) -> LitAgent[Any]:
    if isinstance(agent, LitAgent):
        return agent
    if isinstance(agent, type) and issubclass(agent, LitAgent):
        raise TypeError(f"An agent is a LitAgent's instance, got the class: write {agent.__name__}().")
    raise TypeError(f"An agent is a LitAgent's instance, got {type(agent)}.")


def _inside_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


@contextlib.contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """Turns the first Ctrl+C inside of the block into an event; a second one is a KeyboardInterrupt again.

    Signals are the main thread's; on any other one, the event is never set.
    """
    interrupted = threading.Event()

    def note(signum: int, frame: FrameType | None) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()

    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield interrupted
    finally:
        # None stands for a handler that Python knows nothing of.
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)


def _renamed(old_name: str, old: Any, new_name: str, new: Any) -> Any:
    """The value of a renamed parameter, whichever name it came under."""
    if old is None:
        return new
    warnings.warn(f"{old_name} is deprecated, please use {new_name}.", DeprecationWarning, stacklevel=3)
    if new is None:
        return old
    if new != old:
        warnings.warn(
            f"{old_name} is ignored, since {new_name} is given, too.", DeprecationWarning, stacklevel=3
        )
    return new


def _as_hooks(hooks: Hook | Sequence[Hook] | None) -> tuple[Hook, ...]:
    if hooks is None:
        return ()
    return (hooks,) if isinstance(hooks, Hook) else tuple(hooks)
