"""`APO`: automatic prompt optimization by textual gradients and beam search.

After R. Pryzant et al., "Automatic Prompt Optimization with 'Gradient Descent' and Beam Search" (EMNLP 2023):
a model reads what came of a prompt and criticizes it (the gradient), another edits the prompt accordingly,
and of all versions the best few go on.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import random
import time
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypedDict, TypeVar

from agentlightning.adapter.messages import TraceToMessages
from agentlightning.algorithm.apo import poml as poml
from agentlightning.algorithm.apo import prompts
from agentlightning.algorithm.apo.placeholders import complaint, placeholders
from agentlightning.algorithm.apo.result import APOResult, Branch, Candidate, Cost, Refusal, Round
from agentlightning.algorithm.base import Algorithm
from agentlightning.algorithm.utils import batch_iter_over_dataset, with_llm_proxy, with_store
from agentlightning.emitter.reward import find_final_reward
from agentlightning.semconv import AGL_STATE
from agentlightning.store.base import is_finished
from agentlightning.types import PromptTemplate

if TYPE_CHECKING:
    from openai import AsyncOpenAI

    from agentlightning.store.base import LightningStore
    from agentlightning.types import Dataset, Rollout, RolloutMode, RolloutStatus, Span

__all__ = ["APO", "RolloutResultForAPO", "VersionedPromptTemplate"]

logger = logging.getLogger(__name__)

T_task = TypeVar("T_task")
T = TypeVar("T")

TRACE_FILE = "apo_trace.jsonl"
"""Where `_poml_trace` writes, in the working directory."""

_WAIT_SECONDS = 60.0
_AGAIN_SECONDS = 0.05
_CALLS_OF_A_BRANCH = 2


class RolloutResultForAPO(TypedDict):
    """What came of one rollout, for a model to read."""

    status: RolloutStatus
    """How it ended; `cancelled` if it took too long."""
    final_reward: float | None
    """Its last reward, if it has one."""
    spans: list[dict[str, Any]]
    """What was recorded."""
    messages: list[Any]
    """Its calls of models, as `TraceToMessages` reads them."""


@dataclass
class VersionedPromptTemplate:
    """A version of the prompt; `v0` is the seed."""

    version: str
    prompt_template: PromptTemplate
    score: float | None = None
    """Its mean reward when it was last compared with others."""


class _BudgetSpentError(Exception):
    """`max_calls` calls have been made."""


# What is noted of the branch that the running task works on.
_branch: ContextVar[Branch | None] = ContextVar("agl_apo_branch", default=None)


class APO(Algorithm, Generic[T_task]):
    """Improves a prompt template: a model criticizes it by what agents did with it, another edits it, and
    the versions that are rewarded best go on (beam search).

    The trainer needs `initial_resources` with a `PromptTemplate`, the adapter `TraceToMessages()`, and both
    datasets. Each of `beam_rounds` rounds takes `beam_width` prompts of the beam, makes up to `branch_factor`
    edits of each, every one by the rewards of a batch of training tasks, scores the beam and the edits on one
    batch of validation tasks, and keeps the best `beam_width`; of equals the older. The leader is then
    measured on all validation tasks, and is the best prompt if it beats the best so far. That takes

        beam_width * branch_factor * min(gradient_batch_size, training tasks)
        + (beam + beam_width * branch_factor) * min(val_batch_size, validation tasks) + validation tasks

    rollouts a round, less those of edits that came to nothing. All rollouts of a step are handed out at once.

    An edit with other placeholders than its parent, or with stray braces, is refused with the reason, and
    asked for once more. No critique, or an edit that says nothing new, adds no candidate.
    """

    def __init__(
        self,
        async_openai_client: AsyncOpenAI,
        *,
        gradient_model: str = "gpt-5-mini",
        apply_edit_model: str = "gpt-4.1-mini",
        diversity_temperature: float = 1.0,
        gradient_batch_size: int = 4,
        val_batch_size: int = 16,
        beam_width: int = 4,
        branch_factor: int = 4,
        beam_rounds: int = 3,
        rollout_batch_timeout: float = 3600.0,
        run_initial_validation: bool = True,
        _poml_trace: bool = False,
        state_path: str | os.PathLike[str] | None = None,
        max_calls: int | None = None,
        gradient_prompts: Sequence[str] | None = None,
        edit_prompts: Sequence[str] | None = None,
    ) -> None:
        """Makes an optimizer.

        Args:
            async_openai_client: An `openai.AsyncOpenAI`, or anything with `chat.completions.create`.
            gradient_model: The model that criticizes.
            apply_edit_model: The model that edits.
            diversity_temperature: Their temperature, which is left out where a model refuses it.
            gradient_batch_size: On how many training tasks a critique is based.
            val_batch_size: On how many validation tasks candidates are compared.
            beam_width: How many prompts go on from round to round.
            branch_factor: How many edits of each are tried.
            beam_rounds: How many rounds there are.
            rollout_batch_timeout: How many seconds a batch of rollouts may take, from when those before it
                are done. Rollouts that have not ended then are called off: they count as reward 0 if a runner
                had them, and not at all if none had.
            run_initial_validation: Whether to measure the seed on all validation tasks first.
            _poml_trace: Whether to append every exchange with a model to `apo_trace.jsonl`, one JSON object a
                line with `time`, `model`, `messages` and `answer`.
            state_path: A file that holds what `get_result` returns, as JSON, after each round. If it is there
                at the start, the run goes on from it; a round that was not finished is done anew.
            max_calls: How many calls of a model there may be, including those before a resume. Once they are
                spent, the round under way is finished with the candidates that it has, and is the last one.
            gradient_prompts: Texts that ask for a critique, of which one is chosen at random, in place of
                `prompts.GRADIENT_PROMPTS`: for `string.Template`, with `$prompt_template`, and `$experiments`
                (messages) or `$traces` (spans).
            edit_prompts: Texts that ask for an edit, in place of `prompts.EDIT_PROMPTS`, with
                `$prompt_template` and `$critique`.

        Raises:
            ValueError: for an argument that makes no sense.
        """
        for name, number, least in (
            ("gradient_batch_size", gradient_batch_size, 1),
            ("val_batch_size", val_batch_size, 1),
            ("beam_width", beam_width, 1),
            ("branch_factor", branch_factor, 1),
            ("beam_rounds", beam_rounds, 0),
            ("max_calls", 0 if max_calls is None else max_calls, 0),
        ):
            if number < least:
                raise ValueError(f"{name} must be at least {least}, not {number}")
        self.async_openai_client = async_openai_client
        self.gradient_model = gradient_model
        self.apply_edit_model = apply_edit_model
        self.diversity_temperature = diversity_temperature
        self.gradient_batch_size = gradient_batch_size
        self.val_batch_size = val_batch_size
        self.beam_width = beam_width
        self.branch_factor = branch_factor
        self.beam_rounds = beam_rounds
        self.rollout_batch_timeout = rollout_batch_timeout
        self.run_initial_validation = run_initial_validation
        self._poml_trace = _poml_trace
        self.state_path = state_path
        self.max_calls = max_calls
        self.gradient_prompts = prompts.checked(
            "gradient_prompts", gradient_prompts or prompts.GRADIENT_PROMPTS, prompts.GRADIENT_FIELDS
        )
        self.edit_prompts = prompts.checked(
            "edit_prompts", edit_prompts or prompts.EDIT_PROMPTS, prompts.EDIT_FIELDS
        )
        self._takes_no_temperature: set[str] = set()
        self._begin()

    def _begin(self) -> None:
        """Forgets what an earlier run has come to."""
        self._history_best_prompt: PromptTemplate | None = None
        self._history_best_score = -math.inf
        self._history_best_version: str | None = None
        self._version_counter = 0
        self._seed: tuple[str, PromptTemplate] | None = None
        self._seed_score: float | None = None
        self._beam: list[VersionedPromptTemplate] = []
        self._rounds: list[Round] = []
        self._branches: list[Branch] = []
        self._cost = Cost()
        # Queued in the order of their batches, and waited for in that order.
        self._enqueueing = asyncio.Lock()
        self._awaiting = asyncio.Lock()

    # What it needs

    def get_adapter(self) -> TraceToMessages:
        """The adapter.

        Raises:
            ValueError: if it is no `TraceToMessages`.
        """
        adapter = super().get_adapter()
        if not isinstance(adapter, TraceToMessages):
            raise ValueError(
                "Adapter must be a TraceToMessages for APO algorithm: give the trainer "
                f"adapter=TraceToMessages(), not {type(adapter).__name__}"
            )
        return adapter

    def get_seed_prompt_template(self) -> tuple[str, PromptTemplate]:
        """The first prompt template of the initial resources, and its name.

        Raises:
            ValueError: if there is none.
        """
        resources = self.get_initial_resources()
        if resources is None:
            raise ValueError(
                "initial_resources are not set for APO algorithm: give the trainer "
                "initial_resources={name: PromptTemplate(...)}"
            )
        for name, resource in resources.items():
            if isinstance(resource, PromptTemplate):
                return name, resource
        raise ValueError(
            "initial_resources have no PromptTemplate for APO algorithm to start from, only "
            f"{', '.join(resources) or 'nothing'}"
        )

    # What it has come to

    def get_best_prompt(self) -> PromptTemplate:
        """The best prompt so far.

        Raises:
            ValueError: if there has been no run.
        """
        if self._history_best_prompt is None:
            raise ValueError("No best prompt found: APO has not been run.")
        return self._history_best_prompt

    def get_result(self) -> APOResult:
        """What it has come to so far: the best prompt, its score and version, every finished round with its
        candidates and critiques, and what the models have cost.

        Raises:
            ValueError: if there has been no run.
        """
        best = self.get_best_prompt()
        if self._seed is None or self._history_best_version is None:
            raise ValueError("There is no result: APO has not been run.")
        return APOResult(
            resource_name=self._seed[0],
            seed=self._seed[1],
            seed_score=self._seed_score,
            best_prompt=best,
            best_version=self._history_best_version,
            best_score=None if self._history_best_score == -math.inf else self._history_best_score,
            beam=_as_candidates(self._beam),
            rounds=list(self._rounds),
            versions=self._version_counter,
            cost=self._cost.model_copy(),
        )

    # Running

    @with_llm_proxy()
    @with_store
    async def run(
        self,
        store: LightningStore,
        llm_proxy: Any | None,
        train_dataset: Dataset[T_task] | None = None,
        val_dataset: Dataset[T_task] | None = None,
    ) -> APOResult:
        """Runs all rounds, or those that a run before has left, and returns what it has come to.

        Raises:
            ValueError: if something that it needs is missing, or `state_path` is of another prompt.
        """
        self._begin()
        self.get_adapter()
        resource_name, seed, train_batches, val_batches = self._initialize_beam(train_dataset, val_dataset)
        val_dataset = _required("val_dataset", val_dataset)
        if not self._resume():
            first = self._create_versioned_prompt(seed)
            self._beam = [first]
            self._history_best_prompt, self._history_best_version = seed, first.version
            if self.run_initial_validation:
                prefix = self._format_log_prefix(round_num=0, prompt_version=first.version)
                _, score = await self.evaluate_prompt_on_batch(
                    first, resource_name, _items(val_dataset), "val", prefix=prefix
                )
                self._seed_score = self._history_best_score = score
                self._log(logging.INFO, f"The seed's score is {score:.3f}.", prefix=prefix)
            self._save()

        for number in range(len(self._rounds) + 1, self.beam_rounds + 1):
            if self._calls_left() < _CALLS_OF_A_BRANCH:
                self._log(
                    logging.WARNING,
                    f"The budget of {self.max_calls} calls is spent; there are no more rounds.",
                    prefix=self._format_log_prefix(round_num=number),
                )
                break
            parents = self._sample_parent_prompts(self._beam, number)
            made = await self._generate_candidate_prompts(parents, resource_name, train_batches, number)
            candidates = [*self._beam, *made]
            beam = await self._evaluate_and_select_beam(candidates, resource_name, val_batches, number)
            leader_score = await self._update_best_prompt(beam, resource_name, val_dataset, number)
            self._beam = beam
            self._rounds.append(
                Round(
                    number=number,
                    branches=self._branches,
                    candidates=_as_candidates(_by_score(candidates)),
                    beam=[prompt.version for prompt in beam],
                    leader_score=leader_score,
                )
            )
            self._save()
        return self.get_result()

    def _initialize_beam(
        self, train_dataset: Dataset[T_task] | None, val_dataset: Dataset[T_task] | None
    ) -> tuple[str, PromptTemplate, Iterator[Sequence[T_task]], Iterator[Sequence[T_task]]]:
        """The name of the resource, the seed, and endless batches of both datasets."""
        resource_name, seed = self.get_seed_prompt_template()
        train_dataset = _required("train_dataset", train_dataset)
        val_dataset = _required("val_dataset", val_dataset)
        try:
            placeholders(seed)
        except ValueError as error:
            logger.warning(
                "The prompt %r can't be filled in by str.format (%s): placeholders of edits are not checked.",
                resource_name,
                error,
            )
        self._seed = (resource_name, seed)
        return (
            resource_name,
            seed,
            batch_iter_over_dataset(train_dataset, self.gradient_batch_size),
            batch_iter_over_dataset(val_dataset, self.val_batch_size),
        )

    def _resume(self) -> bool:
        """Takes up what has been saved; False if there is nothing."""
        saved = None if self.state_path is None else APOResult.load(self.state_path)
        if saved is None:
            return False
        if (saved.resource_name, saved.seed) != self._seed:
            raise ValueError(
                f"{os.fspath(self.state_path or '')} is the state of a run with another initial prompt "
                f"({saved.resource_name!r}): give another state_path, or remove it"
            )
        self._seed_score = saved.seed_score
        self._history_best_prompt = saved.best_prompt
        self._history_best_version = saved.best_version
        self._history_best_score = -math.inf if saved.best_score is None else saved.best_score
        self._beam = [
            VersionedPromptTemplate(prompt.version, prompt.prompt_template, prompt.score)
            for prompt in saved.beam
        ]
        self._rounds = saved.rounds
        self._version_counter = saved.versions
        self._cost = saved.cost
        logger.info("Going on after round %d, from %s.", len(self._rounds), self.state_path)
        return True

    def _save(self) -> None:
        if self.state_path is not None:
            self.get_result().save(self.state_path)

    def _sample_parent_prompts(
        self, beam: list[VersionedPromptTemplate], round_num: int
    ) -> list[tuple[int, VersionedPromptTemplate]]:
        """`beam_width` prompts to improve, with their places in the beam: all in random order, or, where it
        has too few, all in turn."""
        if len(beam) < self.beam_width:
            places = [index % len(beam) for index in range(self.beam_width)]
        else:
            places = random.sample(range(len(beam)), self.beam_width)
        return [(place, beam[place]) for place in places]

    async def _generate_candidate_prompts(
        self,
        parent_prompts: list[tuple[int, VersionedPromptTemplate]],
        resource_name: str,
        grad_dataset_iterator: Iterator[Sequence[T_task]],
        round_num: int,
    ) -> list[VersionedPromptTemplate]:
        """Up to `branch_factor` edits of each prompt, as far as the budget goes."""
        work = [
            (beam_idx, branch_idx, parent)
            for beam_idx, (_, parent) in enumerate(parent_prompts, 1)
            for branch_idx in range(1, self.branch_factor + 1)
        ]
        left = self._calls_left()
        if left < len(work) * _CALLS_OF_A_BRANCH:
            work = work[: int(left) // _CALLS_OF_A_BRANCH]
            self._log(
                logging.WARNING,
                f"The budget leaves {left} calls, which is enough for {len(work)} edits.",
                prefix=self._format_log_prefix(round_num=round_num),
            )
        self._branches = [Branch(parent=parent.version) for _, _, parent in work]

        async def edit(
            beam_idx: int,
            branch_idx: int,
            parent: VersionedPromptTemplate,
            batch: Sequence[T_task],
            branch: Branch,
        ) -> str | None:
            _branch.set(branch)
            prefix = self._format_log_prefix(
                round_num=round_num, beam_idx=beam_idx, branch_idx=branch_idx, prompt_version=parent.version
            )
            results, branch.train_score = await self.evaluate_prompt_on_batch(
                parent, resource_name, batch, "train", prefix=prefix
            )
            return await self.textual_gradient_and_apply_edit(parent, results, prefix=prefix)

        texts = await _all(
            edit(*branch, next(grad_dataset_iterator), note)
            for branch, note in zip(work, self._branches, strict=True)
        )
        known = {parent.prompt_template.template for _, parent in parent_prompts}
        made: list[VersionedPromptTemplate] = []
        for text, (_, _, parent), note in zip(texts, work, self._branches, strict=True):
            if not text or not text.strip():
                note.reason = note.reason or "the edit is empty"
            elif text in known:
                note.reason = "the edit is the same as another prompt of this round"
            else:
                known.add(text)
                engine = parent.prompt_template.engine
                made.append(self._create_versioned_prompt(PromptTemplate(template=text, engine=engine)))
                note.version = made[-1].version
        self._log(
            logging.INFO,
            f"{len(made)} new prompts: {', '.join(prompt.version for prompt in made) or 'none'}.",
            prefix=self._format_log_prefix(round_num=round_num),
        )
        return made

    async def _evaluate_and_select_beam(
        self,
        candidates: list[VersionedPromptTemplate],
        resource_name: str,
        val_dataset_iterator: Iterator[Sequence[T_task]],
        round_num: int,
    ) -> list[VersionedPromptTemplate]:
        """Scores all candidates on one batch of validation tasks, and returns the best `beam_width`."""
        batch = next(val_dataset_iterator)
        outcomes = await _all(
            self.evaluate_prompt_on_batch(
                candidate,
                resource_name,
                batch,
                "val",
                prefix=self._format_log_prefix(round_num=round_num, prompt_version=candidate.version),
            )
            for candidate in candidates
        )
        for candidate, (_, score) in zip(candidates, outcomes, strict=True):
            candidate.score = score
        beam = _by_score(candidates)[: self.beam_width]
        if not beam:
            raise ValueError("No beam candidates any more")
        self._log(
            logging.INFO,
            f"The beam is {', '.join(f'{prompt.version} ({prompt.score:.3f})' for prompt in beam)}.",
            prefix=self._format_log_prefix(round_num=round_num),
        )
        return beam

    async def _update_best_prompt(
        self,
        beam: list[VersionedPromptTemplate],
        resource_name: str,
        val_dataset: Dataset[T_task],
        round_num: int,
    ) -> float:
        """Measures the leader on all validation tasks, and returns its score; it is the best prompt if that
        is better than what was best."""
        leader = beam[0]
        prefix = self._format_log_prefix(round_num=round_num, prompt_version=leader.version)
        _, score = await self.evaluate_prompt_on_batch(
            leader, resource_name, _items(val_dataset), "val", prefix=prefix
        )
        if score > self._history_best_score:
            self._log(
                logging.INFO,
                f"The best score is {score:.3f} now, after {self._history_best_score:.3f}.",
                prefix=prefix,
            )
            self._history_best_prompt = leader.prompt_template
            self._history_best_score = score
            self._history_best_version = leader.version
        else:
            self._log(
                logging.INFO,
                f"With {score:.3f} it is no better than {self._history_best_version} with "
                f"{self._history_best_score:.3f}.",
                prefix=prefix,
            )
        return score

    # Rollouts

    async def evaluate_prompt_on_batch(
        self,
        prompt: VersionedPromptTemplate,
        resource_name: str,
        dataset: Sequence[T_task],
        mode: RolloutMode,
        *,
        prefix: str | None = None,
    ) -> tuple[list[RolloutResultForAPO], float]:
        """Has agents work on tasks with this prompt, and returns what came of each, and the mean reward. What
        has no reward counts as 0.

        The other initial resources go with the prompt. Several batches may be under way: they are worked on
        in the order in which they were asked for.
        """
        store = self.get_store()
        ids: list[str] = []
        ended: list[Rollout] = []
        try:
            async with self._enqueueing:
                resources = {**(self.get_initial_resources() or {}), resource_name: prompt.prompt_template}
                await store.update_resources(prompt.version, resources)
                for task in dataset:
                    rollout = await store.enqueue_rollout(input=task, mode=mode, resources_id=prompt.version)
                    ids.append(rollout.rollout_id)
            async with self._awaiting:
                ended = await self._ended(store, ids)
                if len(ended) < len(ids):
                    ended = await self._given_up(store, ids, ended, prefix)
                ids = []
                results = await self.get_rollout_results(ended, prefix=prefix)
        finally:
            # Whoever stops in the middle must not leave work to whoever comes next.
            await self._call_off(store, ids)
        score = sum(result["final_reward"] or 0.0 for result in results) / max(1, len(results))
        self._log(logging.INFO, f"{mode} score of {len(results)} rollouts: {score:.3f}", prefix=prefix)
        return results, score

    async def _ended(self, store: LightningStore, ids: list[str]) -> list[Rollout]:
        """Those of the rollouts that have ended, as soon as all have or the time is up."""
        end = time.monotonic() + self.rollout_batch_timeout
        wait = 0.0
        while True:
            begin = time.monotonic()
            ended = await store.wait_for_rollouts(rollout_ids=ids, timeout=wait)
            left = end - time.monotonic()
            if len(ended) >= len(ids) or left <= 0:
                return ended
            if time.monotonic() - begin < wait:
                # A store that does not wait for those that are gone.
                known = [await store.get_rollout_by_id(rollout_id) for rollout_id in ids]
                ids = [
                    rollout_id for rollout_id, rollout in zip(ids, known, strict=True) if rollout is not None
                ]
                await asyncio.sleep(min(left, _AGAIN_SECONDS))
            wait = min(left, _WAIT_SECONDS)

    async def _given_up(
        self, store: LightningStore, ids: list[str], ended: list[Rollout], prefix: str | None
    ) -> list[Rollout]:
        """Calls off what has not ended in time, and returns what counts, in the order of `ids`: what has
        ended, and what a runner was at."""
        counted = {rollout.rollout_id: rollout for rollout in ended}
        late = [rollout_id for rollout_id in ids if rollout_id not in counted]
        for rollout_id in late:
            rollout = await store.get_rollout_by_id(rollout_id)
            if rollout is None:
                continue
            if not is_finished(rollout):
                was_queued = rollout.status == "queuing"
                rollout = await store.update_rollout(rollout_id, status="cancelled")
                if was_queued:
                    continue
            counted[rollout_id] = rollout
        self._log(
            logging.WARNING,
            f"{len(late)} of {len(ids)} rollouts have not ended within {self.rollout_batch_timeout:g} s and "
            "are called off.",
            prefix=prefix,
        )
        return [counted[rollout_id] for rollout_id in ids if rollout_id in counted]

    async def _call_off(self, store: LightningStore, ids: list[str]) -> None:
        for rollout_id in ids:
            try:
                rollout = await store.get_rollout_by_id(rollout_id)
                if rollout is not None and not is_finished(rollout):
                    await store.update_rollout(rollout_id, status="cancelled")
            except Exception:
                logger.warning("Rollout %s could not be called off.", rollout_id, exc_info=True)

    @with_store
    async def get_rollout_results(
        self, store: LightningStore, rollout: list[Rollout], *, prefix: str | None = None
    ) -> list[RolloutResultForAPO]:
        """What came of rollouts, by their latest attempts."""
        adapter = self.get_adapter()
        results: list[RolloutResultForAPO] = []
        for one in rollout:
            spans = [
                span
                for span in await store.query_spans(one.rollout_id, "latest")
                # What the runner notes of the attempt itself is no part of what the agent has done.
                if span.name != AGL_STATE
            ]
            results.append(
                RolloutResultForAPO(
                    status=one.status,
                    final_reward=find_final_reward(spans),
                    spans=[span.model_dump(mode="json") for span in spans],
                    messages=self._messages(adapter, one, spans, prefix),
                )
            )
        return results

    def _messages(
        self, adapter: TraceToMessages, rollout: Rollout, spans: list[Span], prefix: str | None
    ) -> list[Any]:
        """The calls of models. That they can't be read is no reason to stop."""
        try:
            return list(adapter.adapt(spans))
        except Exception as error:
            text = f"The spans of rollout {rollout.rollout_id} can't be read as messages: {error!r}"
            self._log(logging.WARNING, text, prefix=prefix)
            return []

    # Models

    async def compute_textual_gradient(
        self,
        current_prompt: VersionedPromptTemplate,
        rollout_results: list[RolloutResultForAPO],
        *,
        prefix: str | None = None,
    ) -> str | None:
        """Has a model say what is wrong with a prompt, by up to `gradient_batch_size` of these results; None
        if it says nothing."""
        text = random.choice(self.gradient_prompts)
        if len(rollout_results) < self.gradient_batch_size:
            self._log(
                logging.DEBUG,
                f"There are only {len(rollout_results)} results for a critique.",
                prefix=prefix,
            )
            chosen = rollout_results
        else:
            chosen = random.sample(rollout_results, self.gradient_batch_size)
        messages = prompts.user_message(
            text,
            {
                "prompt_template": current_prompt.prompt_template.template,
                "experiments": prompts.experiments(chosen, "messages"),
                "traces": prompts.experiments(chosen, "spans"),
            },
        )
        critique = await self._ask(self.gradient_model, messages)
        self._log(logging.INFO, f"Critique: {critique}", prefix=prefix)
        return critique

    async def textual_gradient_and_apply_edit(
        self,
        current_prompt: VersionedPromptTemplate,
        rollout: list[RolloutResultForAPO],
        *,
        prefix: str | None = None,
    ) -> str | None:
        """Has one model criticize a prompt and another edit it accordingly; None if nothing usable comes of
        it."""
        note = _branch.get() or Branch(parent=current_prompt.version)
        # Before anything is waited for, so that a seeded run always chooses the same.
        text = random.choice(self.edit_prompts)
        try:
            note.critique = await self.compute_textual_gradient(current_prompt, rollout, prefix=prefix)
            if not note.critique or not note.critique.strip():
                note.reason = "the critique is empty"
            else:
                messages = prompts.user_message(
                    text,
                    {
                        "prompt_template": current_prompt.prompt_template.template,
                        "critique": note.critique,
                    },
                )
                return await self._edited(current_prompt, messages, note, prefix)
        except _BudgetSpentError:
            note.reason = f"the budget of {self.max_calls} calls is spent"
        self._log(logging.WARNING, f"There is no edit: {note.reason}.", prefix=prefix)
        return None

    async def _edited(
        self,
        parent: VersionedPromptTemplate,
        messages: list[dict[str, Any]],
        note: Branch,
        prefix: str | None,
    ) -> str | None:
        """An edit with the placeholders of its parent; one that has not is asked for once more."""
        for _ in range(2):
            edit = await self._ask(self.apply_edit_model, messages)
            if not edit or not edit.strip():
                note.reason = "the edit is empty"
                break
            wrong = complaint(parent.prompt_template, edit)
            if wrong is None:
                note.reason = None
                return edit
            note.reason = f"the edit can't be used: {wrong}"
            note.refused.append(Refusal(template=edit, reason=wrong))
            self._log(logging.INFO, f"An edit is refused: {wrong}.", prefix=prefix)
            messages = [
                *messages,
                {"role": "assistant", "content": edit},
                {"role": "user", "content": prompts.REFUSAL.substitute(reason=wrong)},
            ]
        self._log(logging.WARNING, f"There is no edit: {note.reason}.", prefix=prefix)
        return None

    def _calls_left(self) -> float:
        return math.inf if self.max_calls is None else self.max_calls - self._cost.calls

    async def _ask(self, model: str, messages: list[dict[str, Any]]) -> str | None:
        """What a model answers.

        Raises:
            _BudgetSpentError: if no more calls may be made.
        """
        if self._calls_left() < 1:
            raise _BudgetSpentError
        self._cost.calls += 1
        create: Any = self.async_openai_client.chat.completions.create
        request: dict[str, Any] = {"model": model, "messages": messages}
        if model in self._takes_no_temperature:
            answer = await create(**request)
        else:
            try:
                answer = await create(**request, temperature=self.diversity_temperature)
            except Exception as error:
                # Some models that reason have a temperature of their own.
                if getattr(error, "status_code", None) != 400 or "temperature" not in str(error).lower():
                    raise
                self._takes_no_temperature.add(model)
                answer = await create(**request)
        usage = getattr(answer, "usage", None)
        if usage is not None:
            self._cost.prompt_tokens += usage.prompt_tokens or 0
            self._cost.completion_tokens += usage.completion_tokens or 0
        text: str | None = answer.choices[0].message.content
        if self._poml_trace:
            line = {"time": time.time(), "model": model, "messages": messages, "answer": text}
            _append(Path(TRACE_FILE), json.dumps(line, ensure_ascii=False) + "\n")
        return text

    # Small things

    def _create_versioned_prompt(
        self, prompt_template: PromptTemplate, *, score: float | None = None
    ) -> VersionedPromptTemplate:
        """A prompt under the next version."""
        version = f"v{self._version_counter}"
        self._version_counter += 1
        return VersionedPromptTemplate(version, prompt_template, score)

    def _format_log_prefix(
        self,
        *,
        round_num: int | None = None,
        beam_idx: int | None = None,
        branch_idx: int | None = None,
        prompt_version: str | None = None,
    ) -> str:
        """Such as `[Round 01 | Beam 02 | Branch 03 | Prompt v4]`."""
        numbers = (("Round", round_num), ("Beam", beam_idx), ("Branch", branch_idx))
        parts = [f"{name} {number:02d}" for name, number in numbers if number is not None]
        if prompt_version is not None:
            parts.append(f"Prompt {prompt_version}")
        return f"[{' | '.join(parts)}]" if parts else ""

    def _log(self, level: int, message: str, *, prefix: str | None = None) -> None:
        logger.log(level, "%s", f"{prefix} {message}" if prefix else message)


async def _all(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Does things side by side; when one fails, the others are cancelled and have ended when it is raised."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _required(name: str, dataset: Dataset[T_task] | None) -> Dataset[T_task]:
    if dataset is None or len(dataset) == 0:
        raise ValueError(f"{name} is required for APO algorithm, with at least one task")
    return dataset


def _items(dataset: Dataset[T_task]) -> list[T_task]:
    return [dataset[index] for index in range(len(dataset))]


def _by_score(candidates: Iterable[VersionedPromptTemplate]) -> list[VersionedPromptTemplate]:
    """The best first; of equals, those first that came first, which are the older ones."""
    return sorted(
        candidates, key=lambda prompt: -math.inf if prompt.score is None else prompt.score, reverse=True
    )


def _as_candidates(prompts: Iterable[VersionedPromptTemplate]) -> list[Candidate]:
    return [
        Candidate(version=prompt.version, prompt_template=prompt.prompt_template, score=prompt.score)
        for prompt in prompts
    ]


def _append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)
