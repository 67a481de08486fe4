"""Training data of many rollouts: rows of tokens with masks, rewards, advantages, and an account of the rest.

Made by the Rust core; `docs/training-data.md` says how. Options are those of `TrainingOptions` there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agentlightning.adapter.triplet import _raising
from agentlightning.types import Attempt, Rollout, Span

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from agentlightning.store import LightningStore

__all__ = [
    "TrainingArrays",
    "TrainingData",
    "advantages",
    "batches",
    "pack",
    "to_atif",
    "to_conversations",
    "to_preference_pairs",
    "training_arrays",
    "training_data",
]

Trace = Sequence[Span] | tuple[Rollout, Attempt | None, Sequence[Span]]
"""The spans of an attempt, or its rollout, the attempt and its spans."""


@dataclass(frozen=True)
class TrainingData:
    """Rows to train on, as dictionaries, and an account of them."""

    rows: list[dict[str, Any]]
    report: dict[str, Any]


@dataclass(frozen=True)
class TrainingArrays:
    """Rows to train on, one after the other in flat NumPy arrays.

    Row `i` has the tokens from `offsets[i]` to `offsets[i + 1]`.
    """

    offsets: NDArray[np.int64]
    token_ids: NDArray[np.uint32]
    mask: NDArray[np.uint8]
    """1 for the tokens that the model sampled there and that are to be trained on."""
    logprobs: NDArray[np.float32]
    """The log-prob of each trained token, NaN where it is not known; 0 elsewhere."""
    rewards: NDArray[np.float64]
    """What each row's rollout earned; NaN where nothing judged it."""
    advantages: NDArray[np.float64]
    weights: NDArray[np.float64]
    """What each trained token counts so that every rollout counts the same."""
    rollout_ids: list[str]
    attempt_ids: list[str]
    groups: list[str]
    agents: list[str | None]
    models: list[str | None]
    report: dict[str, Any]

    def __len__(self) -> int:
        return len(self.rollout_ids)

    @classmethod
    def _of(cls, answer: tuple[dict[str, Any], bytes]) -> TrainingArrays:
        import numpy as np

        from agentlightning import _core

        columns, report = answer
        arrays: dict[str, Any] = {
            name: np.asarray(column) if isinstance(column, _core.Column) else column
            for name, column in columns.items()
        }
        return cls(**arrays, report=json.loads(report))


def _encode_traces(traces: Sequence[Trace]) -> bytes:
    from agentlightning._native import encode
    from agentlightning.store.native import encode_spans

    parts = []
    for trace in traces:
        rollout: Rollout | None = None
        attempt: Attempt | None = None
        if isinstance(trace, tuple) and len(trace) == 3 and isinstance(trace[0], Rollout):
            rollout, attempt, spans = trace
        else:
            spans = trace
        head = encode({"rollout": rollout, "attempt": attempt})
        parts.append(head[:-1] + b',"spans":' + encode_spans(list(spans)) + b"}")
    return b"[" + b",".join(parts) + b"]"


def _encode_options(options: Mapping[str, Any]) -> bytes:
    from agentlightning._native import encode

    return encode(dict(options))


def training_data(traces: Sequence[Trace], **options: Any) -> TrainingData:
    """Makes training data of attempts.

    Args:
        traces: For each, its spans, or its rollout, the attempt and its spans.
        options: Of `TrainingOptions`, e.g. `max_length=4096`, `level="transition"`, `estimator="rloo"`,
            `agents={"include": ["writ*"]}`.

    Raises:
        ValueError: for an option that makes no sense.
    """
    from agentlightning import _core

    answer = _raising(_core.training_data, _encode_traces(traces), _encode_options(options))
    return TrainingData(**json.loads(answer))


def training_arrays(
    source: LightningStore | Sequence[Trace],
    *,
    select: Mapping[str, Any] | None = None,
    **options: Any,
) -> TrainingArrays:
    """Makes training data as flat arrays.

    Args:
        source: A store, or traces as for `training_data`. A store that is served elsewhere makes the data
            itself (`POST /v1/agl/training-data`), so that the spans stay there.
        select: Which of the store's rollouts: `rollout_id_in`, `mode_in`, `status_in`, `min_reward`,
            `max_reward`, `since`, `until`. By default all that have ended.
        options: As for `training_data`.

    Raises:
        ValueError: for an option that makes no sense.
        TypeError: for a store that is not of this package.
    """
    from agentlightning import _core
    from agentlightning._native import encode
    from agentlightning.store import LightningStore
    from agentlightning.store.delegate import DelegatingStore
    from agentlightning.store.native import NativeStore

    store: Any = source
    while isinstance(store, DelegatingStore):
        store = store._target()
    if isinstance(store, LightningStore) and not isinstance(store, NativeStore):
        raise TypeError(
            f"{type(store).__name__} is no store of this package: query its spans, and give those instead"
        )
    if isinstance(store, NativeStore):
        request = encode({"select": dict(select or {}), "options": options})
        return TrainingArrays._of(_raising(_core.store_arrays, store._core(), request))
    if select is not None:
        raise ValueError(
            "select chooses among the rollouts of a store: leave out the traces that are not wanted"
        )
    return TrainingArrays._of(_raising(_core.trace_arrays, _encode_traces(store), _encode_options(options)))


def to_conversations(traces: Sequence[Trace], **options: Any) -> list[dict[str, Any]]:
    """The conversations of attempts, in the form that TRL's `SFTTrainer` reads."""
    from agentlightning import _core

    found: list[dict[str, Any]] = json.loads(
        _raising(_core.conversations, _encode_traces(traces), _encode_options(options))
    )
    return found


def to_preference_pairs(
    traces: Sequence[Trace], *, margin: float = 0.0, **options: Any
) -> list[dict[str, Any]]:
    """Pairs of conversations of one group, the better one first, as TRL's `DPOTrainer` reads them."""
    from agentlightning import _core

    found: list[dict[str, Any]] = json.loads(
        _raising(_core.preference_pairs, _encode_traces(traces), _encode_options(options), margin)
    )
    return found


def to_atif(traces: Sequence[Trace], **options: Any) -> list[dict[str, Any]]:
    """Attempts in the Agent Trajectory Interchange Format."""
    from agentlightning import _core

    found: list[dict[str, Any]] = json.loads(
        _raising(_core.atif, _encode_traces(traces), _encode_options(options))
    )
    return found


def advantages(estimator: str, groups: Sequence[str], rewards: Sequence[float | None]) -> list[float | None]:
    """How much better each rollout did than was to be expected; None where nothing judged it.

    Args:
        estimator: `grpo`, `dr_grpo`, `rloo`, `reinforce_plus_plus` or `reinforce_plus_plus_baseline`.
        groups: The group of each rollout.
        rewards: The reward of each rollout.

    Raises:
        ValueError: for an estimator that there is none of.
    """
    from agentlightning import _core

    found: list[float | None] = _raising(_core.advantages, estimator, list(groups), list(rewards))
    return found


def pack(
    lengths: Sequence[int], capacity: int, batches: Sequence[tuple[int, int]] | None = None
) -> list[tuple[list[int], list[int]]]:
    """Packs rows into buffers of `capacity` tokens: of each, its rows and its `cu_seqlens`.

    Args:
        lengths: The number of tokens of each row.
        capacity: How many tokens a buffer has.
        batches: First and last row, exclusive, of each batch, as `batches` cuts them; no buffer has rows of
            two of them. One batch by default.
    """
    from agentlightning import _core

    ranges = [(0, len(lengths))] if batches is None else list(batches)
    found: list[tuple[list[int], list[int]]] = _raising(_core.pack, list(lengths), ranges, capacity)
    return found


def batches(groups: Sequence[str], size: int) -> list[tuple[int, int]]:
    """Cuts rows into batches without parting rows of one group: first and last row of each, exclusive.

    Args:
        groups: The group of each row, e.g. `TrainingArrays.groups`; rows of a group are neighbours.
        size: How many rows a batch has at least; the last one has what is left.
    """
    from agentlightning import _core

    found: list[tuple[int, int]] = _core.batches(list(groups), size)
    return found
