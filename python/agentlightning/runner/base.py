"""The runner interface."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from agentlightning.types import ParallelWorkerBase

if TYPE_CHECKING:
    from agentlightning.execution.events import ExecutionEvent
    from agentlightning.litagent.litagent import LitAgent
    from agentlightning.store.base import LightningStore
    from agentlightning.types import Hook, NamedResources, Rollout, RolloutMode

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Runner(ParallelWorkerBase, Generic[T]):
    """Takes tasks from a store and runs an agent on them.

    It is set up once (`init`), then once per worker (`init_worker`), and then either works through the queue
    (`iter`) or runs single tasks (`step`).
    """

    def init(self, agent: LitAgent[T], **kwargs: Any) -> None:
        """Takes the agent."""
        raise NotImplementedError()

    def init_worker(self, worker_id: int, store: LightningStore, **kwargs: Any) -> None:
        """Takes the store; `worker_id` names the worker in it."""
        raise NotImplementedError()

    def run(self, *args: Any, **kwargs: Any) -> None:
        """There is no such entry; a runner is used through `iter` or `step`."""
        raise RuntimeError("Use iter() or step() of a runner instead of run().")

    def teardown(self, *args: Any, **kwargs: Any) -> None:
        """Undoes `init`."""
        raise NotImplementedError()

    def teardown_worker(self, worker_id: int, *args: Any, **kwargs: Any) -> None:
        """Undoes `init_worker`."""
        raise NotImplementedError()

    @contextmanager
    def run_context(
        self,
        *,
        agent: LitAgent[T] | None = None,
        store: LightningStore,
        hooks: Sequence[Hook] | None = None,
        worker_id: int | None = None,
    ) -> Iterator[Runner[T]]:
        """Sets the runner up and tears down afterwards what was set up.

        Args:
            agent: The agent to run; by default the one that the runner has, if it has one.
            store: Where tasks come from and results go to.
            hooks: Called around each attempt.
            worker_id: The worker's number; 0 by default.
        """
        number = 0 if worker_id is None else worker_id
        initialized = worker_initialized = False
        try:
            # A runner of somebody's own may need to be given one.
            given = {} if agent is None else {"agent": agent}
            self.init(**given, hooks=hooks)
            initialized = True
            self.init_worker(worker_id=number, store=store)
            worker_initialized = True
            yield self
        finally:
            try:
                if worker_initialized:
                    self.teardown_worker(worker_id=number)
            except Exception:
                logger.exception("Error during runner worker teardown")
            try:
                if initialized:
                    self.teardown()
            except Exception:
                logger.exception("Error during runner teardown")

    async def iter(self, *, event: ExecutionEvent | None = None) -> None:
        """Works through the store's queue until `event` is set."""
        raise NotImplementedError()

    async def step(
        self,
        input: T,
        *,
        resources: NamedResources | None = None,
        mode: RolloutMode | None = None,
        event: ExecutionEvent | None = None,
    ) -> Rollout:
        """Runs the agent on one task, past the queue, and returns the rollout that it has become."""
        raise NotImplementedError()
