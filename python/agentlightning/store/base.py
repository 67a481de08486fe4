"""The interface of a store, and what every store shares."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypedDict, final

from typing_extensions import TypeAlias

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

    from agentlightning.types import (
        Attempt,
        AttemptedRollout,
        AttemptStatus,
        EnqueueRolloutRequest,
        NamedResources,
        PaginatedResult,
        ResourcesUpdate,
        Rollout,
        RolloutConfig,
        RolloutMode,
        RolloutStatus,
        Span,
        TaskInput,
        Worker,
        WorkerStatus,
    )

__all__ = [
    "UNSET",
    "LightningStore",
    "LightningStoreCapabilities",
    "LightningStoreStatistics",
    "Unset",
    "is_finished",
    "is_queuing",
    "is_running",
]


@final
class _UnsetType:
    """The type of `UNSET`, which tells an argument left out from an explicit None."""

    __slots__ = ()
    _instance: _UnsetType | None = None

    def __new__(cls) -> _UnsetType:
        if cls._instance is None:
            cls._instance = super().__new__(cls)
        return cls._instance

    def __repr__(self) -> str:
        return "UNSET"

    def __reduce__(self) -> tuple[type[_UnsetType], tuple[()]]:
        return (_UnsetType, ())


Unset: TypeAlias = _UnsetType
UNSET = _UnsetType()
"""Stands for an argument that was left out: the field keeps its value."""


def is_queuing(rollout: Rollout) -> bool:
    """Whether the rollout waits in the queue."""
    return rollout.status in ("queuing", "requeuing")


def is_running(rollout: Rollout) -> bool:
    """Whether the rollout is being worked on."""
    return rollout.status in ("preparing", "running")


def is_finished(rollout: Rollout) -> bool:
    """Whether the rollout has ended."""
    return rollout.status in ("failed", "succeeded", "cancelled")


class LightningStoreCapabilities(TypedDict, total=False):
    """What a store can do."""

    thread_safe: bool
    """Safe to call from several threads."""
    async_safe: bool
    """Safe to call from several tasks of one event loop."""
    zero_copy: bool
    """Usable from another process without copying it."""
    otlp_traces: bool
    """Has an OTLP endpoint."""


class LightningStoreStatistics(TypedDict, total=False):
    """How much a store holds."""

    name: str
    total_rollouts: int
    total_attempts: int
    total_spans: int
    total_resources: int
    total_workers: int
    uptime: float
    """Seconds since the store was opened."""
    total_span_bytes: int
    eviction_threshold_bytes: int
    safe_threshold_bytes: int
    memory_capacity_bytes: int


class LightningStore:
    """The interface of a store: rollouts in a queue, attempts at them, spans, resources and workers.

    Every method here raises `NotImplementedError`; a store overrides those it has. What a method does, and
    what it raises, is written down here once.
    """

    def _unsupported(self, method: str) -> NoReturn:
        raise NotImplementedError(f"{type(self).__name__} does not implement {method}()")

    @property
    def capabilities(self) -> LightningStoreCapabilities:
        """What this store can do."""
        return LightningStoreCapabilities(
            thread_safe=False, async_safe=False, zero_copy=False, otlp_traces=False
        )

    async def statistics(self) -> LightningStoreStatistics:
        """How much the store holds."""
        return LightningStoreStatistics(name=type(self).__name__)

    def otlp_traces_endpoint(self) -> str:
        """The URL that OTLP traces go to. `NotImplementedError` where there is none."""
        self._unsupported("otlp_traces_endpoint")

    async def start_rollout(
        self,
        input: TaskInput,
        mode: RolloutMode | None = None,
        resources_id: str | None = None,
        config: RolloutConfig | None = None,
        metadata: dict[str, Any] | None = None,
        worker_id: str | None = None,
    ) -> AttemptedRollout:
        """Creates a rollout and its first attempt, past the queue."""
        self._unsupported("start_rollout")

    async def enqueue_rollout(
        self,
        input: TaskInput,
        mode: RolloutMode | None = None,
        resources_id: str | None = None,
        config: RolloutConfig | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> Rollout:
        """Puts a rollout at the tail of the queue.

        Without a `resources_id` the latest resources at this moment are pinned.
        """
        self._unsupported("enqueue_rollout")

    async def enqueue_many_rollouts(self, rollouts: Sequence[EnqueueRolloutRequest]) -> Sequence[Rollout]:
        """Puts rollouts at the tail of the queue, in this order, all or none."""
        self._unsupported("enqueue_many_rollouts")

    async def dequeue_rollout(
        self, worker_id: str | None = None, *, wait: float | None = None
    ) -> AttemptedRollout | None:
        """Claims the rollout at the head of the queue; None when there is none.

        With `wait`, waits for so many seconds until there is one, and returns the moment there is.
        """
        self._unsupported("dequeue_rollout")

    async def dequeue_many_rollouts(
        self, *, limit: int = 1, worker_id: str | None = None, wait: float | None = None
    ) -> Sequence[AttemptedRollout]:
        """Claims up to `limit` rollouts from the head of the queue.

        With `wait`, waits for so many seconds until there is one, and returns the moment there is.
        """
        self._unsupported("dequeue_many_rollouts")

    async def pause(self) -> None:
        """Has the queue give out no rollouts, from now on and after a restart. Those under way go on."""
        self._unsupported("pause")

    async def resume(self) -> None:
        """Has the queue give out rollouts again. Whoever waits for one is given it at once."""
        self._unsupported("resume")

    async def is_paused(self) -> bool:
        """Whether the queue gives out no rollouts."""
        self._unsupported("is_paused")

    async def start_attempt(self, rollout_id: str, worker_id: str | None = None) -> AttemptedRollout:
        """Makes another attempt at a rollout, whatever its status, beyond `max_attempts` if need be."""
        self._unsupported("start_attempt")

    async def add_span(self, span: Span) -> Span | None:
        """Stores a span; None when the attempt already has one of this id, which then stays.

        `ValueError` for an unknown rollout or attempt.
        """
        self._unsupported("add_span")

    async def add_many_spans(self, spans: Sequence[Span]) -> Sequence[Span]:
        """Stores spans and returns those that were new, grouped by attempt in order of first appearance."""
        self._unsupported("add_many_spans")

    async def append_spans(self, spans: Sequence[Span]) -> Sequence[Span]:
        """Stores spans under the next sequence ids of their rollouts, in this order, and returns those that
        were new. The spans given carry their sequence ids afterwards."""
        if not spans:
            return []
        issued = await self.get_many_span_sequence_ids([(span.rollout_id, span.attempt_id) for span in spans])
        for span, sequence_id in zip(spans, issued, strict=True):
            span.sequence_id = sequence_id
        return await self.add_many_spans(spans)

    async def add_otel_span(
        self,
        rollout_id: str,
        attempt_id: str,
        readable_span: ReadableSpan,
        sequence_id: int | None = None,
    ) -> Span | None:
        """Stores an OpenTelemetry span; without a `sequence_id` the next one is issued."""
        self._unsupported("add_otel_span")

    async def query_rollouts(
        self,
        *,
        status_in: Sequence[RolloutStatus] | None = None,
        rollout_id_in: Sequence[str] | None = None,
        rollout_id_contains: str | None = None,
        filter_logic: Literal["and", "or"] = "and",
        sort_by: str | None = None,
        sort_order: Literal["asc", "desc"] = "asc",
        limit: int = -1,
        offset: int = 0,
        status: Sequence[RolloutStatus] | None = None,
        rollout_ids: Sequence[str] | None = None,
        mode_in: Sequence[RolloutMode] | None = None,
    ) -> PaginatedResult[Rollout | AttemptedRollout]:
        """Looks for rollouts; each comes with its latest attempt if there has been one.

        A list that is there but empty matches nothing. `status` and `rollout_ids` are the deprecated names of
        `status_in` and `rollout_id_in`.
        """
        self._unsupported("query_rollouts")

    async def query_attempts(
        self,
        rollout_id: str,
        *,
        sort_by: str | None = "sequence_id",
        sort_order: Literal["asc", "desc"] = "asc",
        limit: int = -1,
        offset: int = 0,
    ) -> PaginatedResult[Attempt]:
        """Looks for the attempts of one rollout; an empty page for an unknown one."""
        self._unsupported("query_attempts")

    async def get_rollout_by_id(self, rollout_id: str) -> Rollout | AttemptedRollout | None:
        """One rollout, with its latest attempt if there has been one."""
        self._unsupported("get_rollout_by_id")

    async def get_latest_attempt(self, rollout_id: str) -> Attempt | None:
        """The attempt with the highest number."""
        self._unsupported("get_latest_attempt")

    async def query_resources(
        self,
        *,
        resources_id: str | None = None,
        resources_id_contains: str | None = None,
        sort_by: str | None = None,
        sort_order: Literal["asc", "desc"] = "asc",
        limit: int = -1,
        offset: int = 0,
        all_versions: bool = False,
    ) -> PaginatedResult[ResourcesUpdate]:
        """Looks for resources: the newest version of each id, or with `all_versions` every one kept."""
        self._unsupported("query_resources")

    async def get_resources_by_id(
        self, resources_id: str, version: int | None = None
    ) -> ResourcesUpdate | None:
        """The newest version of one resources id, or the version asked for."""
        self._unsupported("get_resources_by_id")

    async def get_latest_resources(self) -> ResourcesUpdate | None:
        """The resources added or updated last."""
        self._unsupported("get_latest_resources")

    async def add_resources(self, resources: NamedResources) -> ResourcesUpdate:
        """Stores resources under a new id, as version 1; they become the latest."""
        self._unsupported("add_resources")

    async def update_resources(self, resources_id: str, resources: NamedResources) -> ResourcesUpdate:
        """Stores a new version under this id, the first if there is none; it becomes the latest."""
        self._unsupported("update_resources")

    async def get_next_span_sequence_id(self, rollout_id: str, attempt_id: str) -> int:
        """Issues the next span sequence id of a rollout: 1, 2, ..."""
        self._unsupported("get_next_span_sequence_id")

    async def get_many_span_sequence_ids(
        self, rollout_attempt_ids: Sequence[tuple[str, str]]
    ) -> Sequence[int]:
        """Issues span sequence ids for pairs of rollout and attempt, in this order."""
        self._unsupported("get_many_span_sequence_ids")

    async def wait_for_rollouts(
        self, *, rollout_ids: list[str], timeout: float | None = None
    ) -> list[Rollout]:
        """Waits until all of the rollouts have ended or the time (in seconds) is up.

        Returns those that have ended, in the order asked for; unknown ids are left out. None waits for ever,
        0 just looks.
        """
        self._unsupported("wait_for_rollouts")

    async def query_spans(
        self,
        rollout_id: str,
        attempt_id: str | Literal["latest"] | None = None,
        *,
        trace_id: str | None = None,
        trace_id_contains: str | None = None,
        span_id: str | None = None,
        span_id_contains: str | None = None,
        parent_id: str | None = None,
        parent_id_contains: str | None = None,
        name: str | None = None,
        name_contains: str | None = None,
        filter_logic: Literal["and", "or"] = "and",
        limit: int = -1,
        offset: int = 0,
        sort_by: str | None = "sequence_id",
        sort_order: Literal["asc", "desc"] = "asc",
    ) -> PaginatedResult[Span]:
        """Looks for spans of one rollout; an empty page for an unknown one.

        The rollout and the attempt always apply; the other conditions are put together by `filter_logic`.
        """
        self._unsupported("query_spans")

    async def update_rollout(
        self,
        rollout_id: str,
        input: TaskInput | Unset = UNSET,
        mode: RolloutMode | Unset | None = UNSET,
        resources_id: str | Unset | None = UNSET,
        status: RolloutStatus | Unset = UNSET,
        config: RolloutConfig | Unset = UNSET,
        metadata: dict[str, Any] | Unset | None = UNSET,
    ) -> Rollout:
        """Changes exactly the fields that are given. `ValueError` for an unknown rollout."""
        self._unsupported("update_rollout")

    async def delete_rollout(self, rollout_id: str) -> None:
        """Removes a rollout with its attempts and spans, wherever it stands. `ValueError` for an unknown one.

        A worker that held it is free, and `wait_for_rollouts` no longer waits for it.
        """
        self._unsupported("delete_rollout")

    async def update_attempt(
        self,
        rollout_id: str,
        attempt_id: str | Literal["latest"],
        status: AttemptStatus | Unset = UNSET,
        worker_id: str | Unset = UNSET,
        last_heartbeat_time: float | Unset = UNSET,
        metadata: dict[str, Any] | Unset = UNSET,
    ) -> Attempt:
        """Changes exactly the fields that are given. `ValueError` for an unknown rollout or attempt."""
        self._unsupported("update_attempt")

    async def query_workers(
        self,
        *,
        status_in: Sequence[WorkerStatus] | None = None,
        worker_id_contains: str | None = None,
        filter_logic: Literal["and", "or"] = "and",
        sort_by: str | None = None,
        sort_order: Literal["asc", "desc"] = "asc",
        limit: int = -1,
        offset: int = 0,
    ) -> PaginatedResult[Worker]:
        """Looks for workers."""
        self._unsupported("query_workers")

    async def get_worker_by_id(self, worker_id: str) -> Worker | None:
        """One worker."""
        self._unsupported("get_worker_by_id")

    async def update_worker(self, worker_id: str, heartbeat_stats: dict[str, Any] | Unset = UNSET) -> Worker:
        """Takes a worker's heartbeat in; an unknown worker is made, without stats the last ones stand."""
        self._unsupported("update_worker")

    def subscribe(
        self,
        *,
        kind_in: Sequence[Literal["rollout", "attempt", "span", "resources", "worker"]] | None = None,
        rollout_id_in: Sequence[str] | None = None,
        span_name: str | None = None,
        after: str | None = None,
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Follows what changes, in the order in which it was kept; every condition given must hold.

        Each event is a dictionary with its `kind`, the ids of what it is about, where that stands now, and an
        `id` to resume `after`. The first has the kind `start` and nothing but its id. The kind `gap` tells
        that events are missing: how many were `dropped`, if that is known, and the `reason`.
        """
        self._unsupported("subscribe")

    async def purge(
        self, *, rollout_id_in: Sequence[str] | None = None, ended_before: float | None = None
    ) -> dict[str, int]:
        """Removes the spans of ended rollouts for good, and tells of how many `rollouts` and `spans`.

        At least one condition must be given. Looking for spans of such a rollout is a `SpansGoneError`.
        """
        self._unsupported("purge")


INTERFACE: tuple[str, ...] = tuple(
    name for name, member in vars(LightningStore).items() if callable(member) and not name.startswith("_")
)
"""The names of a store's methods."""
