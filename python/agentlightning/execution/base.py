"""What it takes to run an algorithm and its runners side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from agentlightning.execution.events import ExecutionEvent
    from agentlightning.store.base import LightningStore


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
