"""`Baseline`: runs every task once and tells how it went."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from agentlightning.algorithm.base import Algorithm
from agentlightning.algorithm.utils import with_llm_proxy, with_store
from agentlightning.emitter.reward import find_final_reward
from agentlightning.semconv import AGL_STATE
from agentlightning.types import RolloutConfig, Triplet

if TYPE_CHECKING:
    from agentlightning.store.base import LightningStore
    from agentlightning.types import Attempt, Dataset, Rollout, RolloutMode, Span

logger = logging.getLogger(__name__)

_FULL_QUEUE_SECONDS = 0.02
_WAIT_SECONDS = 60.0
_SAMPLES = 5


class FastAlgorithm(Algorithm):
    """Marks algorithms that are quick enough to try an agent out with (`Trainer.dev`)."""


class ModeSummary(BaseModel):
    """What has become of the rollouts of one mode."""

    rollouts: int = 0
    """How many there were."""
    succeeded: int = 0
    """How many of them ended well."""
    failed: int = 0
    """How many of them did not."""
    cancelled: int = 0
    """How many of them were called off."""
    rewarded: int = 0
    """How many of them have a reward."""
    mean_reward: float | None = None
    """The mean final reward of those that have one; None if none has."""


class RunSummary(BaseModel):
    """What a run of `Baseline` came to."""

    train: ModeSummary = ModeSummary()
    """The rollouts of the training dataset."""
    val: ModeSummary = ModeSummary()
    """The rollouts of the validation dataset."""
    spans: int = 0
    """Spans of all latest attempts."""
    triplets: int = 0
    """Calls of a model that they hold."""
    prompt_tokens: int = 0
    """Token ids of all prompts."""
    response_tokens: int = 0
    """Token ids of all responses."""
    sample: list[Triplet] = []
    """The first few triplets that have token ids."""
    rollout_ids: list[str] = []
    """All rollouts, in the order of their tasks."""

    @property
    def rollouts(self) -> int:
        """How many rollouts there were."""
        return self.train.rollouts + self.val.rollouts

    @property
    def succeeded(self) -> int:
        """How many of them ended well."""
        return self.train.succeeded + self.val.succeeded

    @property
    def failed(self) -> int:
        """How many of them did not, including those called off."""
        return self.rollouts - self.succeeded

    def by_status(self) -> dict[str, int]:
        """How many rollouts ended in each terminal status."""
        return {
            status: getattr(self.train, status) + getattr(self.val, status)
            for status in ("succeeded", "failed", "cancelled")
        }


@dataclass(frozen=True)
class RunProgress:
    """How far a run of `Baseline` has come."""

    total: int
    """How many rollouts there will be."""
    enqueued: int
    """How many have been handed out."""
    finished: int
    """How many have ended."""
    succeeded: int
    """How many of those ended well."""
    spans: int
    """Spans of those that have ended."""
    triplets: int
    """Calls of a model that they hold."""
    tokens: int
    """Token ids of prompts and responses of those."""
    mean_reward: float | None
    """The mean final reward so far."""


@dataclass
class _Tally:
    """What has been counted so far."""

    total: int
    enqueued: int = 0
    statuses: dict[str, Counter[str]] = field(default_factory=lambda: {"train": Counter(), "val": Counter()})
    rewards: dict[str, list[float]] = field(default_factory=lambda: {"train": [], "val": []})
    spans: int = 0
    triplets: int = 0
    prompt_tokens: int = 0
    response_tokens: int = 0
    sample: list[Triplet] = field(default_factory=list)
    rollout_ids: list[str] = field(default_factory=list)

    def add_triplets(self, triplets: list[Triplet]) -> None:
        self.triplets += len(triplets)
        for triplet in triplets:
            prompt, response = _token_count(triplet.prompt), _token_count(triplet.response)
            self.prompt_tokens += prompt
            self.response_tokens += response
            if prompt and response and len(self.sample) < _SAMPLES:
                self.sample.append(triplet)

    def progress(self) -> RunProgress:
        rewards = self.rewards["train"] + self.rewards["val"]
        statuses = self.statuses["train"] + self.statuses["val"]
        return RunProgress(
            total=self.total,
            enqueued=self.enqueued,
            finished=statuses.total(),
            succeeded=statuses["succeeded"],
            spans=self.spans,
            triplets=self.triplets,
            tokens=self.prompt_tokens + self.response_tokens,
            mean_reward=_mean(rewards),
        )

    def summary(self) -> RunSummary:
        modes = {
            mode: ModeSummary(
                rollouts=statuses.total(),
                succeeded=statuses["succeeded"],
                failed=statuses["failed"],
                cancelled=statuses["cancelled"],
                rewarded=len(self.rewards[mode]),
                mean_reward=_mean(self.rewards[mode]),
            )
            for mode, statuses in self.statuses.items()
        }
        return RunSummary(
            **modes,
            spans=self.spans,
            triplets=self.triplets,
            prompt_tokens=self.prompt_tokens,
            response_tokens=self.response_tokens,
            sample=self.sample,
            rollout_ids=self.rollout_ids,
        )


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _token_count(side: Any) -> int:
    return len(side.get("token_ids") or ()) if isinstance(side, dict) else 0


async def _call_off(store: LightningStore, rollout_ids: list[str]) -> None:
    """Cancels those of the rollouts that have not ended, as far as the store still answers."""
    try:
        ended = await store.wait_for_rollouts(rollout_ids=rollout_ids, timeout=0.0)
        for rollout_id in set(rollout_ids) - {rollout.rollout_id for rollout in ended}:
            await store.update_rollout(rollout_id, status="cancelled")
    except Exception as error:
        logger.warning("Could not call off what is left of the run: %s", error)


class Baseline(FastAlgorithm):
    """Runs every task of both datasets, in order, and logs and sums up what becomes of them. It improves
    nothing."""

    def __init__(
        self,
        *,
        n_epochs: int = 1,
        train_split: float = 0.5,
        polling_interval: float = 5.0,
        max_queue_length: int = 4,
        span_verbosity: Literal["keys", "key_values", "none"] = "keys",
        rollout_config: RolloutConfig | None = None,
        on_progress: Callable[[RunProgress], None] | None = None,
    ) -> None:
        """Makes a baseline.

        Args:
            n_epochs: How often to go through the datasets.
            train_split: Without effect; must be between 0 and 1.
            polling_interval: Seconds between two looks at a store that can't tell by itself, at most.
            max_queue_length: How many tasks may wait for a runner before no more are handed out.
            span_verbosity: What is logged of each span's attributes.
            rollout_config: Time limits and retries of each rollout; the store's defaults for none.
            on_progress: Called whenever a task has been handed out or has ended.

        Raises:
            ValueError: for a split outside of 0 to 1.
        """
        if not 0.0 < train_split < 1.0:
            raise ValueError("train_split must be between 0 and 1.")
        self.n_epochs = n_epochs
        self.train_split = train_split
        self.polling_interval = polling_interval
        self.max_queue_length = max_queue_length
        self.span_verbosity = span_verbosity
        self.rollout_config = rollout_config
        self.on_progress = on_progress

    @with_llm_proxy()
    @with_store
    async def run(
        self,
        store: LightningStore,
        llm_proxy: Any,
        train_dataset: Dataset[Any] | None = None,
        val_dataset: Dataset[Any] | None = None,
    ) -> RunSummary | None:
        """Runs the tasks; called with the datasets only, by keyword.

        Args:
            store: Put in by the decorator.
            llm_proxy: Put in by the decorator.
            train_dataset: Tasks to run in mode `train`.
            val_dataset: Tasks to run in mode `val`.

        Returns:
            What it came to, once every rollout is terminal; None without tasks.
        """
        tasks: list[tuple[Dataset[Any], int, RolloutMode]] = []
        for dataset, mode in ((train_dataset, "train"), (val_dataset, "val")):
            if dataset is not None:
                tasks += [(dataset, index, mode) for index in range(len(dataset))]  # type: ignore[misc]
        if not tasks:
            logger.error("Both datasets are empty; there is nothing to run.")
            return None

        resources_id = None
        initial = self.get_initial_resources()
        if initial is None and await store.get_latest_resources() is None:
            # A runner takes a lack of resources for a mistake; here there are none to be had.
            initial = {}
        if initial is not None:
            resources_id = (await store.update_resources("default", initial)).resources_id

        tally = _Tally(total=len(tasks) * self.n_epochs)
        harvests: list[asyncio.Task[None]] = []
        try:
            for _ in range(self.n_epochs):
                for dataset, index, mode in tasks:
                    await self._wait_for_room(store, harvests)
                    rollout = await store.enqueue_rollout(
                        input=dataset[index],
                        mode=mode,
                        resources_id=resources_id,
                        config=self.rollout_config,
                    )
                    tally.rollout_ids.append(rollout.rollout_id)
                    tally.enqueued += 1
                    harvests.append(
                        asyncio.create_task(self._harvest(store, rollout.rollout_id, mode, tally))
                    )
                    self._report(tally)
            await asyncio.gather(*harvests)
        except BaseException:
            # Nobody will harvest what is left; the next run in this store must not work it off.
            await _call_off(store, tally.rollout_ids)
            raise
        finally:
            for harvest in harvests:
                harvest.cancel()
        summary = tally.summary()
        logger.info(
            "%d of %d rollouts succeeded. Mean reward: train %s, val %s. %d spans, %d triplets.",
            summary.succeeded,
            summary.rollouts,
            summary.train.mean_reward,
            summary.val.mean_reward,
            summary.spans,
            summary.triplets,
        )
        return summary

    def _report(self, tally: _Tally) -> None:
        if self.on_progress is not None:
            self.on_progress(tally.progress())

    async def _wait_for_room(self, store: LightningStore, harvests: list[asyncio.Task[None]]) -> None:
        """Waits until the queue is short enough for another task."""
        delay = _FULL_QUEUE_SECONDS
        while True:
            queued = await store.query_rollouts(
                status_in=["queuing", "requeuing"], limit=self.max_queue_length + 1
            )
            if len(queued) <= self.max_queue_length:
                return
            for harvest in harvests:
                # Nobody would look at its error until the end.
                if harvest.done() and harvest.exception() is not None:
                    harvest.result()
            await asyncio.sleep(min(delay, self.polling_interval))
            delay = min(delay * 1.5, 0.5)

    async def _harvest(self, store: LightningStore, rollout_id: str, mode: str, tally: _Tally) -> None:
        """Waits for one rollout to end, and counts and logs what has become of it."""
        rollout = await self._finished(store, rollout_id)
        attempts = list(await store.query_attempts(rollout_id))
        spans: list[Span] = []
        for attempt in attempts:
            logger.info(
                "[Rollout %s | Attempt %s] ID: %s. Status: %s. Worker: %s",
                rollout_id,
                attempt.sequence_id,
                attempt.attempt_id,
                attempt.status,
                attempt.worker_id,
            )
            stored = await store.query_spans(rollout_id, attempt.attempt_id)
            # What the runner notes of the attempt itself is no part of what the agent has done.
            spans = [span for span in stored if span.name != AGL_STATE]
            self._log_spans(rollout_id, attempt, spans)
        tally.statuses[mode][rollout.status] += 1
        # `spans` are those of the latest attempt, whose outcome is the rollout's.
        tally.spans += len(spans)
        reward = find_final_reward(spans)
        if reward is not None:
            tally.rewards[mode].append(float(reward))
        adapted = self._adapt(rollout, spans)
        if isinstance(adapted, list) and all(isinstance(item, Triplet) for item in adapted):
            tally.add_triplets(adapted)
        self._report(tally)

    async def _finished(self, store: LightningStore, rollout_id: str) -> Rollout:
        """The rollout, once it is terminal."""
        while True:
            try:
                done = await store.wait_for_rollouts(rollout_ids=[rollout_id], timeout=_WAIT_SECONDS)
                if done:
                    return done[0]
            except NotImplementedError:
                await asyncio.sleep(self.polling_interval)
            rollout = await store.get_rollout_by_id(rollout_id)
            if rollout is None:
                raise RuntimeError(f"Rollout {rollout_id} has vanished from the store.")
            if rollout.status in ("succeeded", "failed", "cancelled"):
                return rollout

    def _log_spans(self, rollout_id: str, attempt: Attempt, spans: list[Span]) -> None:
        if self.span_verbosity == "none":
            return
        for span in spans:
            prefix = f"[Rollout {rollout_id} | Attempt {attempt.sequence_id} | Span {span.span_id}]"
            if self.span_verbosity == "key_values":
                shown = f"Attributes: {span.attributes}"
            else:
                shown = f"Attribute keys: {list(span.attributes)}"
            logger.info(
                "%s #%s (%s) From %s to %s. %s",
                prefix,
                span.sequence_id,
                span.name,
                span.start_time,
                span.end_time,
                shown,
            )

    def _adapt(self, rollout: Rollout, spans: list[Span]) -> Any:
        """What the adapter makes of the spans. That it can make nothing of them is no reason to stop."""
        rollout_id = rollout.rollout_id
        try:
            adapter = self.get_adapter()
        except ValueError:
            logger.warning("[Rollout %s] There is no adapter; spans are not adapted.", rollout_id)
            return None
        if not spans:
            # What has failed or was called off says so by itself.
            level = logging.WARNING if rollout.status == "succeeded" else logging.DEBUG
            logger.log(level, "[Rollout %s] There are no spans to adapt.", rollout_id)
            return None
        try:
            adapted = adapter.adapt(spans)
        except Exception:
            logger.exception("[Rollout %s] The adapter has failed.", rollout_id)
            return None
        logger.info("[Rollout %s] Adapted data: %s", rollout_id, adapted)
        return adapted
