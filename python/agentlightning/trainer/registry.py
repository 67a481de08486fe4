"""Short names of components."""

from __future__ import annotations

ExecutionStrategyRegistry: dict[str, str] = {
    "shm": "agentlightning.execution.shared_memory.SharedMemoryExecutionStrategy",
    "cs": "agentlightning.execution.client_server.ClientServerExecutionStrategy",
}
"""Short name to the class that it stands for."""
