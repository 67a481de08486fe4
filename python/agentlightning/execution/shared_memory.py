"""Algorithm and runners as threads of one process."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Literal

from agentlightning.env_var import LightningEnvVar, resolve_bool_env_var
from agentlightning.execution._signals import terminated_like_interrupted
from agentlightning.execution.base import DESERTED, ExecutionStrategy, desertion
from agentlightning.execution.events import ThreadingEvent

if TYPE_CHECKING:
    from agentlightning.execution.base import AlgorithmBundle, RunnerBundle
    from agentlightning.execution.events import ExecutionEvent
    from agentlightning.store.base import LightningStore

logger = logging.getLogger(__name__)


class _Stopped(Exception):
    """A bundle was cancelled because it did not end after the stop event."""


class SharedMemoryExecutionStrategy(ExecutionStrategy):
    """Algorithm and runners in one process, each in a thread with an event loop of its own, around one
    store."""

    alias: str = "shm"

    def __init__(
        self,
        n_runners: int = 1,
        main_thread: Literal["algorithm", "runner"] | None = None,
        join_timeout: float = 15.0,
        graceful_delay: float = 5.0,
        poll_interval: float = 0.05,
        managed_store: bool | None = None,
    ) -> None:
        """Makes a strategy.

        Args:
            n_runners: How many runners to run.
            main_thread: Which side has the calling thread: by default a single runner, or the algorithm where
                there are several.
            join_timeout: Seconds to wait for the threads at the end.
            graceful_delay: Seconds that a side gets to end by itself after the stop event, and again after
                it has been cancelled.
            poll_interval: Seconds between two looks at the stop event.
            managed_store: Whether the store is made safe for threads here; `AGL_MANAGED_STORE`, or true, by
                default.

        Raises:
            ValueError: for a main thread that there is not, or `runner` with several runners.
        """
        if main_thread is None:
            main_thread = "runner" if n_runners == 1 else "algorithm"
        if main_thread not in ("algorithm", "runner"):
            raise ValueError(f"main_thread must be 'algorithm' or 'runner', got {main_thread!r}")
        if main_thread == "runner" and n_runners != 1:
            raise ValueError("main_thread='runner' needs n_runners=1; use main_thread='algorithm' for more")
        self.n_runners = n_runners
        self.main_thread: Literal["algorithm", "runner"] = main_thread
        self.join_timeout = join_timeout
        self.graceful_delay = graceful_delay
        self.poll_interval = poll_interval
        self.managed_store = resolve_bool_env_var(
            LightningEnvVar.AGL_MANAGED_STORE, override=managed_store, fallback=True
        )
        self._event: ExecutionEvent | None = None

    def request_stop(self) -> None:
        """Sets the stop event of a running `execute`."""
        if self._event is not None:
            self._event.set()

    @terminated_like_interrupted()
    def execute(self, algorithm: AlgorithmBundle, runner: RunnerBundle, store: LightningStore) -> Any:
        """Runs both sides to the end.

        Returns:
            What the algorithm's bundle returned; None after Ctrl+C, which ends everything in order.

        Raises:
            Exception: what either side raises.
            SystemExit: after SIGTERM, which is otherwise like Ctrl+C, on the main thread.
            RuntimeError: if the runners have ended before what the algorithm waits for.
        """
        event = self._event = ThreadingEvent()
        if self.managed_store and not store.capabilities.get("thread_safe"):
            from agentlightning.store import LightningStoreThreaded

            store = LightningStoreThreaded(store)
        outcome: dict[str, Any] = {}
        errors: list[BaseException] = []
        threads: list[threading.Thread] = []

        runner_ended = threading.Event()

        def all_ended() -> bool:
            if self.main_thread == "runner":
                return runner_ended.is_set()
            return not any(thread.is_alive() for thread in threads)

        async def watch() -> None:
            if await desertion(store, event, all_ended=all_ended, grace=self.graceful_delay):
                outcome["deserted"] = True
                event.set()

        async def algorithm_side() -> None:
            watching = asyncio.ensure_future(watch())
            try:
                outcome["result"] = await algorithm(store, event)
            finally:
                watching.cancel()

        def in_background(
            name: str, side: Callable[[], Coroutine[Any, Any, None]], *, then_stop: bool
        ) -> None:
            def run() -> None:
                try:
                    asyncio.run(self._supervise(side(), event))
                except _Stopped:
                    logger.warning("%s was cancelled.", name)
                except BaseException as exc:
                    logger.exception("%s has failed.", name)
                    errors.append(exc)
                    event.set()
                else:
                    if then_stop:
                        event.set()

            thread = threading.Thread(target=run, name=name, daemon=True)
            threads.append(thread)
            thread.start()

        try:
            try:
                if self.main_thread == "algorithm":
                    for worker_id in range(self.n_runners):
                        in_background(
                            f"runner-{worker_id}",
                            lambda worker_id=worker_id: runner(store, worker_id, event),  # type: ignore[misc]
                            then_stop=False,
                        )
                    self._on_this_thread(algorithm_side(), event)
                else:
                    # The runner would wait for tasks for ever after the algorithm has ended, hence
                    # `then_stop`.
                    in_background("algorithm", algorithm_side, then_stop=True)
                    self._on_this_thread(runner(store, 0, event), event)
                    runner_ended.set()
                    # It may have ended before the algorithm, by max_rollouts, which then is waited for.
                    for thread in threads:
                        while thread.is_alive() and not event.is_set():
                            thread.join(timeout=self.poll_interval)
            except KeyboardInterrupt:
                logger.warning("Interrupted; winding everything down.")
            finally:
                event.set()
                self._join(threads)
        finally:
            self._event = None
        if errors:
            raise errors[0]
        if "deserted" in outcome and "result" not in outcome:
            raise RuntimeError(DESERTED)
        return outcome.get("result")

    def _on_this_thread(self, side: Coroutine[Any, Any, None], event: ExecutionEvent) -> None:
        try:
            asyncio.run(self._supervise(side, event))
        except _Stopped:
            logger.warning("The side on the main thread was cancelled.")

    async def _supervise(self, side: Coroutine[Any, Any, None], event: ExecutionEvent) -> None:
        """Runs one side, and cancels it if it goes on too long after the stop event.

        Raises:
            _Stopped: if it had to be cancelled.
        """
        task = asyncio.ensure_future(side)
        try:
            while not event.is_set():
                await asyncio.wait([task], timeout=self.poll_interval)
                if task.done():
                    return task.result()
            await asyncio.wait([task], timeout=self.graceful_delay)
            if task.done():
                return task.result()
            task.cancel()
            await asyncio.wait([task], timeout=self.graceful_delay)
            if not task.done():
                logger.error("A side does not end although it was cancelled; it is left behind.")
            elif not task.cancelled():
                return task.result()
            raise _Stopped
        except asyncio.CancelledError:
            event.set()
            if not task.done():
                task.cancel()
                await asyncio.wait([task], timeout=self.graceful_delay)
            raise

    def _join(self, threads: list[threading.Thread]) -> None:
        end = time.monotonic() + self.join_timeout
        for thread in threads:
            thread.join(timeout=max(0.0, end - time.monotonic()))
            if thread.is_alive():
                logger.error("Thread %s has not ended; it is left behind.", thread.name)
