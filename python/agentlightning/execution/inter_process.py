"""0.3's placeholder of a third strategy."""

from __future__ import annotations

from typing import Any

from agentlightning.execution.base import AlgorithmBundle, ExecutionStrategy, RunnerBundle

__all__ = ["InterProcessExecutionStrategy"]


class InterProcessExecutionStrategy(ExecutionStrategy):
    """Only a name, as in 0.3: the strategy `cs` has runners in processes of their own."""

    alias: str = "ipc"

    def execute(self, algorithm: AlgorithmBundle, runner: RunnerBundle, store: Any) -> Any:
        """Refuses.

        Raises:
            NotImplementedError: always, with what to use instead.
        """
        raise NotImplementedError(
            "InterProcessExecutionStrategy is only a name: use ClientServerExecutionStrategy (cs), whose "
            "runners are processes, or SharedMemoryExecutionStrategy (shm), whose runners are threads"
        )
