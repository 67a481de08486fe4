"""What trainers did before there was a store: run an agent for a server that hands out tasks. Deprecated."""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING, Any

from agentlightning.store.base import LightningStore

if TYPE_CHECKING:
    from agentlightning.client import AgentLightningClient
    from agentlightning.execution.events import ExecutionEvent
    from agentlightning.litagent.litagent import LitAgent
    from agentlightning.runner.legacy import LegacyAgentRunner

__all__ = ["TrainerLegacy"]


class _LegacyBundle:
    """What one worker does; made such that it can go to another process."""

    def __init__(
        self,
        agent: LitAgent[Any],
        client: AgentLightningClient,
        tracer: Any,
        adapter: Any,
        max_tasks: int | None,
    ) -> None:
        self.agent = agent
        self.client = client
        self.tracer = tracer
        self.adapter = adapter
        self.max_tasks = max_tasks

    async def __call__(self, store: LightningStore, worker_id: int, event: ExecutionEvent) -> None:
        runner = _runner(
            self.agent, self.client, copy.copy(self.tracer), self.adapter, worker_id, self.max_tasks
        )
        runner.init()
        try:
            runner.init_worker(worker_id)
            try:
                await runner.iter_async(event=event)
            finally:
                runner.teardown_worker(worker_id)
        finally:
            runner.teardown()


def _runner(*args: Any) -> LegacyAgentRunner:
    from agentlightning.runner.legacy import LegacyAgentRunner

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return LegacyAgentRunner(*args)


async def _no_algorithm(store: LightningStore, event: ExecutionEvent) -> None:
    """The algorithm is at the server."""


class TrainerLegacy:
    """The part of the trainer that runs an agent for a legacy server."""

    # Set by the trainer.
    _dev: bool
    n_runners: int
    max_rollouts: int | None
    tracer: Any
    adapter: Any

    def fit_v0(
        self,
        agent: LitAgent[Any],
        train_data: Any = None,
        *,
        val_data: Any = None,
        dev_data: Any = None,
        dev_backend: Any = None,
    ) -> Any:
        """Runs an agent on the tasks of a legacy server, until there are none, each worker has run
        `max_rollouts`, or Ctrl+C. Deprecated: use `fit`.

        Args:
            agent: The agent.
            train_data: The server: its URL or an `AgentLightningClient`. A dataset is trained on by `fit`.
            val_data: The tasks to be judged by, where `train_data` is a dataset.
            dev_data: A `DevTaskLoader`, a client or a URL, which is used instead of `train_data` with
                `Trainer(dev=True)`.
            dev_backend: Another name of `dev_data`.

        Raises:
            ValueError: for a server that is none of these, and with `Trainer(dev=True)` and no `dev_data`.
        """
        from agentlightning.client import AgentLightningClient
        from agentlightning.execution.client_server import ClientServerExecutionStrategy

        warnings.warn("fit_v0() is deprecated. Use fit().", DeprecationWarning, stacklevel=2)
        source, name = train_data, "train_data"
        if self._dev:
            source, name = dev_data if dev_data is not None else dev_backend, "dev_data"
            if source is None:
                raise ValueError("dev_data must be given with Trainer(dev=True), such as a DevTaskLoader.")
        if isinstance(source, str):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                source = AgentLightningClient(source)
        if not isinstance(source, AgentLightningClient):
            if self._dev or not hasattr(source, "__getitem__"):
                raise ValueError(
                    f"{name} must be a URL or an AgentLightningClient, not {type(source).__name__}"
                )
            return self.fit(agent, source, val_dataset=val_data)
        agent.set_trainer(self)  # type: ignore[arg-type]
        if agent.trained_agents is not None and hasattr(self.adapter, "agent_match"):
            self.adapter.agent_match = agent.trained_agents
        strategy = ClientServerExecutionStrategy(role="runner", n_runners=self.n_runners, managed_store=False)
        bundle = _LegacyBundle(agent, source, self.tracer, self.adapter, self.max_rollouts)
        return strategy.execute(_no_algorithm, bundle, LightningStore())

    def fit(self, agent: Any, train_dataset: Any = None, *, val_dataset: Any = None) -> Any:
        """See `Trainer.fit`."""
        raise NotImplementedError()

    @staticmethod
    def kill_orphaned_processes() -> None:
        """Does nothing: runners end with the process that started them, so there are no orphans.

        In 0.3 it killed every process of the machine whose name began with `AgentLightning-`, those of other
        people's trainers too.
        """
        warnings.warn(
            "kill_orphaned_processes() does nothing: runners end by themselves with their trainer.",
            DeprecationWarning,
            stacklevel=2,
        )
