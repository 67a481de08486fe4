"""How a run is going, on the terminal, and what it came to."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

from agentlightning.emitter.reward import find_final_reward
from agentlightning.store.delegate import innermost
from agentlightning.store.errors import StoreError
from agentlightning.store.native import NativeStore

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agentlightning.store.base import LightningStore
    from agentlightning.types import Span

logger = logging.getLogger(__name__)

_ENDED = ("succeeded", "failed", "cancelled")
_DRAW_SECONDS = 0.1
_LOOK_SECONDS = 1.0
_BAR_WIDTH = 24
_PAGE = 200
_ERRORS_SHOWN = 5


@dataclass
class RunFigures:
    """What has become of the rollouts that were made since a run began."""

    enqueued: int = 0
    """How many there are."""
    statuses: Counter[str] = field(default_factory=Counter)
    """How many of them have ended how."""
    rewards: list[float] = field(default_factory=list)
    """The final rewards of those that have one."""
    prompt_tokens: int = 0
    """Tokens that models have read."""
    response_tokens: int = 0
    """Tokens that models have written."""
    errors: Counter[str] = field(default_factory=Counter)
    """Why attempts have failed, and how many."""
    seconds: float = 0.0
    """How long the run has taken."""

    @property
    def finished(self) -> int:
        """How many rollouts have ended."""
        return self.statuses.total()

    @property
    def mean_reward(self) -> float | None:
        """The mean final reward of those that have one."""
        return sum(self.rewards) / len(self.rewards) if self.rewards else None

    def line(self) -> str:
        """Everything but the bar, short."""
        parts = [f"{self.finished}/{self.enqueued} rollouts"]
        if self.mean_reward is not None:
            parts.append(f"reward {self.mean_reward:.3f}")
        parts.append(f"{self.prompt_tokens + self.response_tokens} tokens")
        failed = self.statuses["failed"]
        parts.append(f"{failed} error{'' if failed == 1 else 's'}")
        minutes, seconds = divmod(int(self.seconds), 60)
        return " · ".join([*parts, f"{minutes}:{seconds:02}"])

    def summary(self) -> str:
        """What the run came to, in a few lines."""
        ends = ", ".join(f"{self.statuses[status]} {status}" for status in _ENDED)
        open_ones = self.enqueued - self.finished
        if open_ones > 0:
            ends += f", {open_ones} open"
        reward = "none" if self.mean_reward is None else f"{self.mean_reward:.3f} ({len(self.rewards)})"
        lines = [
            f"{self.enqueued} rollouts in {self.seconds:.1f} s: {ends}",
            f"mean reward {reward}, {self.prompt_tokens} prompt and {self.response_tokens} response tokens",
        ]
        lines += [f"{count}x {error}" for error, count in self.errors.most_common(_ERRORS_SHOWN)]
        return "\n".join(lines)


class RunMonitor:
    """Follows the rollouts of one run through the store, draws a bar where somebody can see it, and prints a
    summary.

    Stores of the Rust core tell what changes; others are looked at every second.
    """

    def __init__(self, store: LightningStore, out: TextIO) -> None:
        self.figures = RunFigures()
        self._store = store
        self._out = out
        self._draws = out.isatty()
        self._started = time.monotonic()
        self._since = 0.0
        self._seen: set[str] = set()
        self._open: set[str] = set()
        self._drawn_at = 0.0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> RunMonitor:
        for latest in await self._store.query_rollouts(sort_by="start_time", sort_order="desc", limit=1):
            self._since = latest.start_time
        ready = asyncio.Event()
        self._task = asyncio.create_task(self._follow(ready), name="run-monitor")
        # What is enqueued before the feed is open would never be seen.
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait([self._task, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])
        try:
            await self._look()
        except Exception as exc:
            logger.warning("The last figures of the run are missing: %s", exc)
        self._draw(at_once=True)
        if self._draws:
            self._out.write("\n")
        self._out.write(self.figures.summary() + "\n")
        self._out.flush()

    async def _follow(self, ready: asyncio.Event) -> None:
        try:
            store = innermost(self._store)
            if isinstance(store, NativeStore):
                await self._listen(store, ready)
            else:
                await self._look_again_and_again(ready)
        except Exception as exc:
            logger.warning("The run is no longer followed: %s", exc)

    async def _listen(self, store: NativeStore, ready: asyncio.Event) -> None:
        async for event in store.subscribe(kind_in=["rollout"]):
            if event["kind"] == "start":
                ready.set()
            elif event["kind"] == "rollout":
                await self._note(event["rollout_id"], event["status"])
            self._draw()

    async def _look_again_and_again(self, ready: asyncio.Event) -> None:
        ready.set()
        while True:
            await self._look()
            self._draw()
            await asyncio.sleep(_LOOK_SECONDS)

    async def _look(self) -> None:
        """Looks for rollouts that are new, and for ends of those that are not."""
        offset = 0
        while True:
            page = await self._store.query_rollouts(
                sort_by="start_time", sort_order="desc", limit=_PAGE, offset=offset
            )
            new = [rollout for rollout in page if rollout.start_time > self._since]
            for rollout in new:
                await self._note(rollout.rollout_id, "queuing")
            if len(new) < _PAGE:
                break
            offset += _PAGE
        if not self._open:
            return
        for rollout in await self._store.query_rollouts(rollout_id_in=sorted(self._open)):
            await self._note(rollout.rollout_id, rollout.status)

    async def _note(self, rollout_id: str, status: str | None) -> None:
        if status in ("queuing", "preparing") and rollout_id not in self._seen:
            self._seen.add(rollout_id)
            self._open.add(rollout_id)
            self.figures.enqueued += 1
        elif status in _ENDED and rollout_id in self._open:
            await self._take_in(rollout_id, str(status))

    async def _take_in(self, rollout_id: str, status: str) -> None:
        """Counts a rollout that has ended, with what it has left behind.

        All in one go, when everything has been read: whoever is cancelled while reading has counted nothing,
        and the last look finds it open.
        """
        rollout = await self._store.get_rollout_by_id(rollout_id)
        attempt = getattr(rollout, "attempt", None)
        failure = ((attempt.metadata if attempt is not None else None) or {}).get("failure")
        spans: list[Span] = []
        try:
            spans = list(await self._store.query_spans(rollout_id, "latest"))
        except StoreError as exc:
            logger.debug("The spans of rollout %s can't be read: %s", rollout_id, exc)
        self._open.discard(rollout_id)
        self.figures.statuses[status] += 1
        if failure:
            self.figures.errors[f"{failure['type']}: {failure['message']}"] += 1
        reward = find_final_reward(spans)
        if reward is not None:
            self.figures.rewards.append(float(reward))
        prompt, response = count_tokens(spans)
        self.figures.prompt_tokens += prompt
        self.figures.response_tokens += response

    def _draw(self, *, at_once: bool = False) -> None:
        now = time.monotonic()
        self.figures.seconds = now - self._started
        if not self._draws or (now - self._drawn_at < _DRAW_SECONDS and not at_once):
            return
        self._drawn_at = now
        share = self.figures.finished / max(1, self.figures.enqueued)
        done = round(_BAR_WIDTH * share)
        text = f"{'━' * done}{'─' * (_BAR_WIDTH - done)} {self.figures.line()}"
        self._out.write(f"\r\x1b[K{text[: shutil.get_terminal_size().columns - 1]}")
        self._out.flush()


def count_tokens(spans: Sequence[Span]) -> tuple[int, int]:
    """Tokens that models have read and written, each call counted once.

    By the usage that a call's span tells, under any of its names, or else by the token ids in it.
    """
    prompt = response = 0
    seen: set[Any] = set()
    for span in spans:
        attributes = span.attributes
        read = _first(attributes, _PROMPT_USAGE, _PROMPT_IDS)
        written = _first(attributes, _RESPONSE_USAGE, _RESPONSE_IDS)
        if read is None and written is None:
            continue
        call = attributes.get("gen_ai.response.id") or span.span_id
        if call in seen:
            continue
        seen.add(call)
        prompt += read or 0
        response += written or 0
    return prompt, response


_PROMPT_USAGE = ("gen_ai.usage.prompt_tokens", "gen_ai.usage.input_tokens")
_RESPONSE_USAGE = ("gen_ai.usage.completion_tokens", "gen_ai.usage.output_tokens")
_PROMPT_IDS, _RESPONSE_IDS = "prompt_token_ids", "response_token_ids"


def _first(attributes: Mapping[str, Any], names: tuple[str, ...], ids: str) -> int | None:
    for name in names:
        value = attributes.get(name)
        if isinstance(value, (int, float)):
            return int(value)
    listed = attributes.get(ids)
    return len(listed) if isinstance(listed, (list, tuple)) else None
