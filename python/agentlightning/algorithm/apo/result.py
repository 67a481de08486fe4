"""What a run of `APO` has come to, so far or in the end; also what is saved of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError

from agentlightning.types import PromptTemplate


class Candidate(BaseModel):
    """A version of the prompt in one round."""

    version: str
    """`v0` is the seed."""
    prompt_template: PromptTemplate
    """The prompt."""
    score: float | None = None
    """The mean reward on the round's batch of validation tasks."""


class Refusal(BaseModel):
    """An edit that could not be used."""

    template: str
    """What the model wrote."""
    reason: str
    """What is wrong with it."""


class Branch(BaseModel):
    """One try at improving one prompt."""

    parent: str
    """The version to improve."""
    train_score: float | None = None
    """The parent's mean reward on the batch of training tasks that the critique is about."""
    critique: str | None = None
    """What is wrong with the parent."""
    refused: list[Refusal] = []
    """Edits that could not be used."""
    version: str | None = None
    """The version that was made."""
    reason: str | None = None
    """Why there is none."""


class Round(BaseModel):
    """One round: from each prompt of the beam come several, and the best of all go on."""

    number: int
    """From 1."""
    branches: list[Branch]
    """How the new versions were made."""
    candidates: list[Candidate]
    """The former beam and the new versions, best first."""
    beam: list[str]
    """The versions that go on."""
    leader_score: float
    """The mean reward of the best candidate on all validation tasks."""


class Cost(BaseModel):
    """What the models that criticize and edit have cost; agents' own calls are not in it."""

    calls: int = 0
    """Calls of a model."""
    prompt_tokens: int = 0
    """As the model's server counts."""
    completion_tokens: int = 0
    """As the model's server counts."""


class APOResult(BaseModel):
    """What a run has come to."""

    format: Literal[1] = 1
    """The version of this form."""
    resource_name: str
    """The resource that the prompt is."""
    seed: PromptTemplate
    """What it started from."""
    seed_score: float | None = None
    """The seed's mean reward on all validation tasks, if it was asked for."""
    best_prompt: PromptTemplate
    """The best prompt so far."""
    best_version: str
    """Its version."""
    best_score: float | None = None
    """Its mean reward on all validation tasks; None before the first has been measured."""
    beam: list[Candidate]
    """What the next round starts from."""
    rounds: list[Round] = []
    """All rounds that have been finished."""
    versions: int
    """How many versions have been made."""
    cost: Cost = Cost()
    """What the models have cost."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes it as JSON, so that the file is at any moment the former one or this."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f"{target.name}.{os.getpid()}.tmp")
        try:
            with beside.open("w", encoding="utf-8") as file:
                file.write(self.model_dump_json(indent=2))
                file.flush()
                os.fsync(file.fileno())
            beside.replace(target)
        finally:
            beside.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> APOResult | None:
        """Reads what `save` has written; None if there is no such file.

        Raises:
            ValueError: if it holds something else.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise ValueError(
                f"{os.fspath(path)} is not the state of an APO run: give another state_path, or remove it "
                f"({error.error_count()} errors, the first: {error.errors()[0]['msg']})"
            ) from None
