"""Classes with constructors of all kinds, made by `lightning_cli`; prints what they were given."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Any, List, Literal, Optional, Union

import agentlightning as agl


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Agent:
    """An agent with many settings.

    Args:
        model: Which model it talks to,
            100% of the time.
    """

    def __init__(
        self,
        model: str,
        steps: int = 3,
        rate: float = 0.5,
        verbose: bool = False,
        top_k: int | None = 7,
        tools: List[str] = (),  # type: ignore[assignment]
        limits: Optional[List[int]] = None,
        colour: Colour = Colour.RED,
        mode: Literal["train", "val"] = "train",
        folder: Path = Path("."),
        either: Union[int, str] = 0,
        llm: agl.LLM | None = None,
        nothing: Optional[str] = "x",
        untyped=None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        if llm is not None:
            assert isinstance(llm, agl.LLM)
        given = {name: value for name, value in locals().items() if name != "self"}
        print(json.dumps(given, default=lambda value: f"{type(value).__name__}:{value}", sort_keys=True))


class Plain:
    """Has no settings."""


class Optimizer:
    def __init__(self, lr: Optional[float]) -> None:
        print(json.dumps({"lr": lr}))


if __name__ == "__main__":
    import sys

    which = sys.argv.pop(1)
    if which == "agent":
        assert type(agl.lightning_cli(Agent)) is Agent
    elif which == "none":
        assert agl.lightning_cli() == ()
    elif which == "several":
        agent, optimizer, plain = agl.lightning_cli(Agent, Optimizer, Plain)
        assert (type(agent), type(optimizer), type(plain)) == (Agent, Optimizer, Plain)
    elif which == "twins":
        agl.lightning_cli(Plain, type("Plain", (), {}))
    elif which == "trainer":
        trainer = agl.lightning_cli(agl.Trainer)
        assert trainer.initial_resources is None or isinstance(trainer.initial_resources["llm"], agl.LLM)
        shown = {
            "n_runners": trainer.n_runners,
            "algorithm": type(trainer.algorithm).__name__,
            "strategy": type(trainer.strategy).__name__,
            "agent_match": trainer.adapter.agent_match,
            "max_rollouts": trainer.max_rollouts,
            "resources": sorted(trainer.initial_resources or {}),
        }
        print(json.dumps(shown))
