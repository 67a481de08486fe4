"""`LitAgent`: an agent as a class."""

from __future__ import annotations

import inspect
import warnings
import weakref
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from agentlightning.runner.base import Runner
    from agentlightning.tracer.base import Tracer
    from agentlightning.trainer.trainer import Trainer
    from agentlightning.types import NamedResources, Rollout, RolloutLegacy, RolloutRawResult, Task

T = TypeVar("T")

# The runner that is running an agent in this context. Workers of one process share the agent object, so the
# reference kept on the object alone would name the wrong one.
running_runner: ContextVar[Runner[Any] | None] = ContextVar("agentlightning_running_runner", default=None)


def is_v0_1_rollout_api(func: Callable[..., Any]) -> bool:
    """Whether a rollout method has the signature of version 0.1, with a parameter `rollout_id`."""
    return "rollout_id" in inspect.signature(func).parameters


class LitAgent(Generic[T]):
    """An agent: override `rollout` (or one of its siblings), as a plain or as an async method.

    The method gets the task, the named resources and the rollout. What it returns is its reward: a number,
    or None if it has emitted rewards on the way, or spans of its own making.
    """

    def __init__(self, *, trained_agents: str | None = None) -> None:
        """Makes an agent.

        Args:
            trained_agents: Deprecated, read by `Trainer.fit_v0` only; adapters select agents by
                `agent_match`.
        """
        if trained_agents is not None:
            warnings.warn(
                "trained_agents is deprecated. Configure `agent_match` of the adapter instead.",
                DeprecationWarning,
                stacklevel=2,
            )
        self.trained_agents = trained_agents

    # Subclasses may leave out super().__init__(), so nothing below relies on it.
    _trainer_ref: weakref.ReferenceType[Trainer] | None = None
    _runner_ref: weakref.ReferenceType[Runner[T]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Trainer and runner belong to the process that the agent was in.
        state = dict(self.__dict__)
        state.pop("_trainer_ref", None)
        state.pop("_runner_ref", None)
        return state

    def is_async(self) -> bool:
        """Whether any of the agent's rollout methods is asynchronous."""
        return any(inspect.iscoroutinefunction(self.rollout_method(mode)) for mode in ("train", "val"))

    def rollout_method(self, mode: str | None) -> Callable[..., Any]:
        """The method that rollouts of this mode call: the one that the class overrides, in either spelling.

        Mode `train` looks for `training_rollout_async`, `training_rollout`, then `rollout_async` and
        `rollout`; every other mode does so with `validation_`. Whether the method is async is up to the
        caller to look at.
        """
        kind = "training" if mode == "train" else "validation"
        for name in (f"{kind}_rollout_async", f"{kind}_rollout", "rollout_async", "rollout"):
            # Looked up on the class first, so that an inherited default does not count as an override.
            if getattr(type(self), name, None) is not getattr(LitAgent, name):
                method: Callable[..., Any] = getattr(self, name)
                return method
        return self.rollout

    def set_trainer(self, trainer: Trainer) -> None:
        """Tells the agent which trainer it belongs to; the reference is weak."""
        self._trainer_ref = weakref.ref(trainer)

    def get_trainer(self) -> Trainer:
        """The trainer.

        Raises:
            ValueError: if there is none, or it is gone, as in a runner's own process.
        """
        if self._trainer_ref is None:
            raise ValueError("Trainer has not been set for this agent.")
        trainer = self._trainer_ref()
        if trainer is None:
            raise ValueError("Trainer reference is no longer valid (object has been garbage collected).")
        return trainer

    @property
    def trainer(self) -> Trainer:
        """The trainer; see `get_trainer`."""
        return self.get_trainer()

    def set_runner(self, runner: Runner[T]) -> None:
        """Tells the agent which runner it belongs to; the reference is weak."""
        self._runner_ref = weakref.ref(runner)

    def get_runner(self) -> Runner[T]:
        """The runner that is running this rollout, or else the one set last.

        Raises:
            ValueError: if there is none, or it is gone.
        """
        running = running_runner.get()
        if running is not None:
            return running
        if self._runner_ref is None:
            raise ValueError("Runner has not been set for this agent.")
        runner = self._runner_ref()
        if runner is None:
            raise ValueError("Runner reference is no longer valid (object has been garbage collected).")
        return runner

    @property
    def runner(self) -> Runner[T]:
        """The runner; see `get_runner`."""
        return self.get_runner()

    def get_tracer(self) -> Tracer:
        """The runner's tracer, or else the trainer's."""
        runner = self.get_runner()
        if hasattr(runner, "tracer"):
            tracer: Tracer = runner.tracer
            return tracer
        return self.get_trainer().tracer

    @property
    def tracer(self) -> Tracer:
        """The tracer; see `get_tracer`."""
        return self.get_tracer()

    def on_rollout_start(self, task: Task, runner: Runner[T], tracer: Tracer) -> None:
        """Deprecated, called by `LegacyAgentRunner` only: use a `Hook`."""

    def on_rollout_end(self, task: Task, rollout: RolloutLegacy, runner: Runner[T], tracer: Tracer) -> None:
        """Deprecated, called by `LegacyAgentRunner` only: use a `Hook`."""

    def rollout(
        self, task: T, resources: NamedResources, rollout: Rollout
    ) -> RolloutRawResult | Awaitable[RolloutRawResult]:
        """Runs the agent on one task. May be overridden by an async method."""
        raise NotImplementedError("Agents must implement `rollout` (or one of its siblings).")

    async def rollout_async(self, task: T, resources: NamedResources, rollout: Rollout) -> RolloutRawResult:
        """0.3's name of an async `rollout`."""
        raise NotImplementedError("Agents must implement `rollout_async` (or one of its siblings).")

    def training_rollout(
        self, task: T, resources: NamedResources, rollout: Rollout
    ) -> RolloutRawResult | Awaitable[RolloutRawResult]:
        """Runs the agent in mode `train`; `rollout` by default."""
        return self.rollout(task, resources, rollout)

    def validation_rollout(
        self, task: T, resources: NamedResources, rollout: Rollout
    ) -> RolloutRawResult | Awaitable[RolloutRawResult]:
        """Runs the agent in every other mode; `rollout` by default."""
        return self.rollout(task, resources, rollout)

    async def training_rollout_async(
        self, task: T, resources: NamedResources, rollout: Rollout
    ) -> RolloutRawResult:
        """0.3's name of an async `training_rollout`."""
        return await self.rollout_async(task, resources, rollout)

    async def validation_rollout_async(
        self, task: T, resources: NamedResources, rollout: Rollout
    ) -> RolloutRawResult:
        """0.3's name of an async `validation_rollout`."""
        return await self.rollout_async(task, resources, rollout)
