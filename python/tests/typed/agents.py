"""Agents and functions as users write them, for type checkers to read; nothing runs this."""

from __future__ import annotations

from collections.abc import Sequence

import agentlightning as agl


class Asynchronous(agl.LitAgent[str]):
    """An agent whose method is async."""

    async def rollout(self, task: str, resources: agl.NamedResources, rollout: agl.Rollout) -> float:
        """A reward."""
        return float(len(task))

    async def validation_rollout(
        self, task: str, resources: agl.NamedResources, rollout: agl.Rollout
    ) -> None:
        """No reward."""


class Synchronous(agl.LitAgent[str]):
    """An agent whose method is plain."""

    def rollout(self, task: str, resources: agl.NamedResources, rollout: agl.Rollout) -> float:
        """A reward."""
        return float(len(task))

    def training_rollout(
        self, task: str, resources: agl.NamedResources, rollout: agl.Rollout
    ) -> list[agl.Span]:
        """Spans of its own making."""
        return []


@agl.rollout
def function(task: str, llm: agl.LLM) -> float:
    """An agent as a function."""
    return float(len(task))


def train(tasks: Sequence[str]) -> None:
    """Hands each of them to a trainer."""
    trainer = agl.Trainer(n_runners=2)
    trainer.fit(Asynchronous(), tasks)
    trainer.fit(Synchronous(), train_dataset=tasks, val_dataset=tasks)
    trainer.fit(function, tasks)
