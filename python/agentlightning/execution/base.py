"""What it takes to run an algorithm and its runners side by side."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from agentlightning.execution.events import ExecutionEvent
    from agentlightning.store.base import LightningStore
    from agentlightning.types import RolloutStatus


logger = logging.getLogger(__name__)

DESERTED = "all runners have ended before the algorithm: nobody is left to work on what is in the store"
"""Why an execution is given up whose runners have left, by `max_rollouts` or by a signal."""


_POLL_SECONDS = 0.05
_WORK_CHECK_SECONDS = 0.5


async def desertion(
    store: LightningStore, event: ExecutionEvent, *, all_ended: Callable[[], bool], grace: float
) -> bool:
    """Waits until no runner is left for what the algorithm waits for, and has not been for `grace` seconds.

    An algorithm without open rollouts, which goes on with what has been done, is left alone.

    Returns:
        True; False if `event` was set before.
    """
    while not all_ended():  # noqa: ASYNC110 - processes and threads can't be awaited
        await asyncio.sleep(_POLL_SECONDS)
    since: float | None = None
    while not event.is_set():
        open_ones: list[RolloutStatus] = ["queuing", "requeuing", "preparing", "running"]
        if not len(await store.query_rollouts(status_in=open_ones, limit=1)):
            since = None
        elif since is None:
            logger.warning("All runners have ended, and there are open rollouts.")
            since = time.monotonic()
        if since is not None and time.monotonic() - since >= grace:
            logger.error("Giving up: %s.", DESERTED)
            return True
        await asyncio.sleep(_WORK_CHECK_SECONDS)
    return False


class AlgorithmBundle(Protocol):
    """Everything the algorithm's side does, from the store it gets until it is done."""

    async def __call__(self, store: LightningStore, event: ExecutionEvent) -> Any:
        """Runs the algorithm; `event` says when to give up."""
        ...


class RunnerBundle(Protocol):
    """Everything one worker does, from the store it gets until it is told to stop."""

    async def __call__(self, store: LightningStore, worker_id: int, event: ExecutionEvent) -> None:
        """Runs the worker; `event` says when to stop."""
        ...


class ExecutionStrategy:
    """Decides where algorithm and runners run, and how they reach the store."""

    def execute(self, algorithm: AlgorithmBundle, runner: RunnerBundle, store: LightningStore) -> Any:
        """Runs both sides to the end and returns what the algorithm's bundle returned."""
        raise NotImplementedError()

    def request_stop(self) -> None:
        """Asks a running `execute`, from any thread, to wind down. Strategies without a way to do so ignore
        it."""
