"""What all stores of the Rust core have in common."""

from __future__ import annotations

import json
import logging
import warnings
from abc import abstractmethod
from collections.abc import AsyncGenerator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar, Union, cast, get_args

from pydantic import BaseModel, Discriminator, Tag, TypeAdapter

from agentlightning import _core
from agentlightning._native import as_exception, call, encode, next_event
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
from agentlightning.types.tracer import STORED

from .base import (
    INTERFACE,
    UNSET,
    LightningStore,
    LightningStoreCapabilities,
    LightningStoreStatistics,
    Unset,
)
from .errors import InvalidArgumentError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

__all__ = ["Claim", "NativeStore"]

logger = logging.getLogger(__name__)

T = TypeVar("T")


def _with_attempt_or_without(value: Any) -> str:
    has_attempt = "attempt" in value if isinstance(value, dict) else isinstance(value, AttemptedRollout)
    return "attempted" if has_attempt else "plain"


RolloutView = Annotated[
    Union[Annotated[AttemptedRollout, Tag("attempted")], Annotated[Rollout, Tag("plain")]],
    Discriminator(_with_attempt_or_without),
]
"""A rollout as queries show it: with its latest attempt, if there has been one."""


@cache
def _reader(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if not isinstance(value, Unset)}


class Claim(BaseModel):
    """A rollout that was claimed, with what a runner begins with."""

    attempted: AttemptedRollout
    """The rollout and the attempt at it."""
    resources: ResourcesUpdate | None
    """The resources that it names, or else the latest; None when there are none."""


class NativeStore(LightningStore):
    """A store of the Rust core. It may be used from any thread and any event loop.

    Arguments cross as JSON: what a rollout's `input` was given as a tuple comes back as a list, as it would
    from a server. Everything returned is the caller's own, except that the spans given to `add_span` and
    `add_many_spans` are returned themselves.
    """

    _has_own_methods: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._has_own_methods = any(getattr(cls, name) is not getattr(NativeStore, name) for name in INTERFACE)

    @property
    def is_whole(self) -> bool:
        """Whether no method of the interface is somebody's own, which would want to be called."""
        return not self._has_own_methods and vars(self).keys().isdisjoint(INTERFACE)

    @abstractmethod
    def _core(self) -> _core.Store:
        """The Rust side, as it is usable in this process."""

    async def _call(self, method: str, **fields: Any) -> bytes:
        return await call(self._core(), method, encode(fields))

    @property
    def capabilities(self) -> LightningStoreCapabilities:
        """What this store can do."""
        capabilities: LightningStoreCapabilities = json.loads(self._core().capabilities())
        return capabilities

    async def statistics(self) -> LightningStoreStatistics:
        """How much the store holds."""
        statistics: LightningStoreStatistics = json.loads(await self._call("statistics"))
        return statistics

    def otlp_traces_endpoint(self) -> str:
        """The URL that OTLP traces go to."""
        try:
            return self._core().otlp_traces_endpoint()
        except _core.CoreError as error:
            raise as_exception(*error.args) from None

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
        request = EnqueueRolloutRequest(
            input=input, mode=mode, resources_id=resources_id, config=config, metadata=metadata
        )
        answer = await self._call("start_rollout", **dict(request), worker_id=worker_id)
        return AttemptedRollout.model_validate_json(answer)

    async def enqueue_rollout(
        self,
        input: TaskInput,
        mode: RolloutMode | None = None,
        resources_id: str | None = None,
        config: RolloutConfig | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> Rollout:
        """Puts a rollout at the tail of the queue."""
        request = EnqueueRolloutRequest(
            input=input, mode=mode, resources_id=resources_id, config=config, metadata=metadata
        )
        return Rollout.model_validate_json(await self._call("enqueue_rollout", **dict(request)))

    async def enqueue_many_rollouts(self, rollouts: Sequence[EnqueueRolloutRequest]) -> Sequence[Rollout]:
        """Puts rollouts at the tail of the queue, in this order, all or none."""
        requests = [dict(EnqueueRolloutRequest.model_validate(rollout)) for rollout in rollouts]
        answer = await self._call("enqueue_many_rollouts", rollouts=requests)
        return _list_of(Rollout, answer)

    async def dequeue_rollout(
        self, worker_id: str | None = None, *, wait: float | None = None
    ) -> AttemptedRollout | None:
        """Claims the rollout at the head of the queue; None when there is none.

        With `wait`, waits for so many seconds until there is one, and returns the moment there is. Cancelling
        the call while it claims may lose the claim.
        """
        answer = await self._call("dequeue_rollout", worker_id=worker_id, wait=wait)
        return _optional(AttemptedRollout, answer)

    async def dequeue_many_rollouts(
        self, *, limit: int = 1, worker_id: str | None = None, wait: float | None = None
    ) -> Sequence[AttemptedRollout]:
        """Claims up to `limit` rollouts from the head of the queue.

        With `wait`, waits for so many seconds until there is one, and returns the moment there is.
        """
        answer = await self._call("dequeue_many_rollouts", limit=limit, worker_id=worker_id, wait=wait)
        return _list_of(AttemptedRollout, answer)

    async def pause(self) -> None:
        """Has the queue give out no rollouts, from now on and after a restart. Those under way go on."""
        await self._call("set_queue_state", paused=True)

    async def resume(self) -> None:
        """Has the queue give out rollouts again. Whoever waits for one is given it at once."""
        await self._call("set_queue_state", paused=False)

    async def is_paused(self) -> bool:
        """Whether the queue gives out no rollouts."""
        state: dict[str, bool] = json.loads(await self._call("queue_state"))
        return state["paused"]

    async def claim_rollout(self, worker_id: str, *, wait: float) -> Claim | None:
        """`dequeue_rollout`, which also finds the resources and stores the state event of the start.

        Raises:
            NotImplementedError: if the server is one of 0.3.
        """
        return _optional(Claim, await self._call("claim_rollout", worker_id=worker_id, wait=wait))

    async def end_attempt(
        self,
        rollout_id: str,
        attempt_id: str,
        *,
        spans: Sequence[Span],
        status: AttemptStatus,
        metadata: dict[str, Any] | Unset = UNSET,
    ) -> None:
        """`append_spans` and then `update_attempt`, or neither: a runner's last words on an attempt.

        Raises:
            NotImplementedError: if the server is one of 0.3.
        """
        await self._call(
            "end_attempt",
            rollout_id=rollout_id,
            attempt_id=attempt_id,
            spans=[_fields_of(span) for span in spans],
            update=_given(status=status, metadata=metadata),
        )

    async def start_attempt(self, rollout_id: str, worker_id: str | None = None) -> AttemptedRollout:
        """Makes another attempt at a rollout, whatever its status, beyond `max_attempts` if need be."""
        answer = await self._call("start_attempt", rollout_id=rollout_id, worker_id=worker_id)
        return AttemptedRollout.model_validate_json(answer)

    async def add_span(self, span: Span) -> Span | None:
        """Stores a span and returns this very object; None when the attempt has one of this id already."""
        is_new = json.loads(await self._call("add_span", **_fields_of(span)))
        if not is_new:
            _log_duplicate(span)
            return None
        return span

    async def add_many_spans(self, spans: Sequence[Span]) -> Sequence[Span]:
        """Stores spans and returns those that were new, grouped by attempt in order of first appearance."""
        if not spans:
            return []
        by_key: dict[tuple[str, str, str], Span] = {}
        for span in spans:
            by_key.setdefault((span.rollout_id, span.attempt_id, span.span_id), span)
        keys = json.loads(await call(self._core(), "add_many_spans", encode_spans(spans)))
        added = [by_key[rollout_id, attempt_id, span_id] for rollout_id, attempt_id, span_id in keys]
        if len(added) < len(spans):
            new = {id(span) for span in added}
            for span in spans:
                if id(span) not in new:
                    _log_duplicate(span)
        return added

    async def append_spans(self, spans: Sequence[Span]) -> Sequence[Span]:
        """Stores spans under the next sequence ids of their rollouts, in this order, and returns those that
        were new. The spans given carry their sequence ids afterwards."""
        if not self.is_whole:
            # Somebody's own add_many_spans wants to see them.
            return await super().append_spans(spans)
        if not spans:
            return []
        by_key = {(span.rollout_id, span.attempt_id, span.span_id): span for span in reversed(spans)}
        placed = json.loads(await call(self._core(), "append_spans", encode_spans(spans)))
        added = []
        for rollout_id, attempt_id, span_id, sequence_id in placed:
            span = by_key[rollout_id, attempt_id, span_id]
            span.sequence_id = sequence_id
            added.append(span)
        return added

    async def add_otel_span(
        self,
        rollout_id: str,
        attempt_id: str,
        readable_span: ReadableSpan,
        sequence_id: int | None = None,
    ) -> Span | None:
        """Stores an OpenTelemetry span; without a `sequence_id` the next one is issued."""
        span = Span.from_opentelemetry(readable_span, rollout_id, attempt_id, sequence_id or 0)
        answer = await self._call(
            "add_otel_span",
            rollout_id=rollout_id,
            attempt_id=attempt_id,
            span=_fields_of(span),
            sequence_id=sequence_id,
        )
        issued = json.loads(answer)
        if issued is None:
            _log_duplicate(span)
            return None
        span.sequence_id = issued
        return span

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
        """Looks for rollouts; each comes with its latest attempt if there has been one."""
        for old, new, value in (
            ("status", "status_in", status),
            ("rollout_ids", "rollout_id_in", rollout_ids),
        ):
            if value is not None:
                warnings.warn(f"{old} is deprecated: use {new}", DeprecationWarning, stacklevel=2)
        answer = await self._call(
            "query_rollouts",
            status_in=_list_or_none(status_in if status_in is not None else status),
            rollout_id_in=_list_or_none(rollout_id_in if rollout_id_in is not None else rollout_ids),
            rollout_id_contains=rollout_id_contains,
            mode_in=_list_or_none(mode_in),
            filter_logic=filter_logic,
            sort_by=sort_by,
            sort_order=sort_order,
            limit=limit,
            offset=offset,
        )
        return _page_of(RolloutView, answer)

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
        answer = await self._call(
            "query_attempts",
            rollout_id=rollout_id,
            sort_by=sort_by,
            sort_order=sort_order,
            limit=limit,
            offset=offset,
        )
        return _page_of(Attempt, answer)

    async def get_rollout_by_id(self, rollout_id: str) -> Rollout | AttemptedRollout | None:
        """One rollout, with its latest attempt if there has been one."""
        answer = await self._call("get_rollout_by_id", id=rollout_id)
        return cast("Rollout | None", _optional(cast("Any", RolloutView), answer))

    async def get_latest_attempt(self, rollout_id: str) -> Attempt | None:
        """The attempt with the highest number."""
        return _optional(Attempt, await self._call("get_latest_attempt", id=rollout_id))

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
        answer = await self._call(
            "query_resources",
            resources_id=resources_id,
            resources_id_contains=resources_id_contains,
            sort_by=sort_by,
            sort_order=sort_order,
            limit=limit,
            offset=offset,
            all_versions=all_versions,
        )
        return _page_of(ResourcesUpdate, answer)

    async def get_resources_by_id(
        self, resources_id: str, version: int | None = None
    ) -> ResourcesUpdate | None:
        """The newest version of one resources id, or the version asked for."""
        answer = await self._call("get_resources_by_id", resources_id=resources_id, version=version)
        return _optional(ResourcesUpdate, answer)

    async def get_latest_resources(self) -> ResourcesUpdate | None:
        """The resources added or updated last."""
        return _optional(ResourcesUpdate, await self._call("get_latest_resources"))

    async def add_resources(self, resources: NamedResources) -> ResourcesUpdate:
        """Stores resources under a new id, as version 1; they become the latest."""
        checked = _reader(NamedResources).validate_python(resources)
        return ResourcesUpdate.model_validate_json(await self._call("add_resources", **checked))

    async def update_resources(self, resources_id: str, resources: NamedResources) -> ResourcesUpdate:
        """Stores a new version under this id, the first if there is none; it becomes the latest."""
        checked = _reader(NamedResources).validate_python(resources)
        answer = await self._call("update_resources", resources_id=resources_id, resources=checked)
        return ResourcesUpdate.model_validate_json(answer)

    async def get_next_span_sequence_id(self, rollout_id: str, attempt_id: str) -> int:
        """Issues the next span sequence id of a rollout: 1, 2, ..."""
        issued: int = json.loads(
            await self._call("get_next_span_sequence_id", rollout_id=rollout_id, attempt_id=attempt_id)
        )
        return issued

    async def get_many_span_sequence_ids(
        self, rollout_attempt_ids: Sequence[tuple[str, str]]
    ) -> Sequence[int]:
        """Issues span sequence ids for pairs of rollout and attempt, in this order."""
        requests = [
            {"rollout_id": rollout_id, "attempt_id": attempt_id}
            for rollout_id, attempt_id in rollout_attempt_ids
        ]
        issued: list[int] = json.loads(
            await call(self._core(), "get_many_span_sequence_ids", json.dumps(requests).encode())
        )
        return issued

    async def wait_for_rollouts(
        self, *, rollout_ids: list[str], timeout: float | None = None
    ) -> list[Rollout]:
        """Waits until all of the rollouts have ended or the time (in seconds) is up."""
        answer = await self._call("wait_for_rollouts", rollout_ids=rollout_ids, timeout=timeout)
        return _list_of(Rollout, answer)

    async def subscribe(
        self,
        *,
        kind_in: Sequence[Literal["rollout", "attempt", "span", "resources", "worker", "queue"]]
        | None = None,
        rollout_id_in: Sequence[str] | None = None,
        span_name: str | None = None,
        after: str | None = None,
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Follows what changes, in the order in which it was kept; every condition given must hold."""
        query = {
            "kind_in": _list_or_none(kind_in),
            "rollout_id_in": _list_or_none(rollout_id_in),
            "span_name": span_name,
            "after": after,
        }
        try:
            subscription = self._core().subscribe(encode(query))
        except _core.CoreError as error:
            raise as_exception(*error.args) from None
        while (event := json.loads(await next_event(subscription))) is not None:
            yield event

    async def purge(
        self, *, rollout_id_in: Sequence[str] | None = None, ended_before: float | None = None
    ) -> dict[str, int]:
        """Removes the spans of ended rollouts for good, and tells of how many `rollouts` and `spans`."""
        removed: dict[str, int] = json.loads(
            await self._call("purge", rollout_id_in=_list_or_none(rollout_id_in), ended_before=ended_before)
        )
        return removed

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
        """Looks for spans of one rollout; an empty page for an unknown one."""
        answer = await self._call(
            "query_spans",
            rollout_id=rollout_id,
            attempt_id=attempt_id,
            trace_id=trace_id,
            trace_id_contains=trace_id_contains,
            span_id=span_id,
            span_id_contains=span_id_contains,
            parent_id=parent_id,
            parent_id_contains=parent_id_contains,
            name=name,
            name_contains=name_contains,
            filter_logic=filter_logic,
            limit=limit,
            offset=offset,
            sort_by=sort_by,
            sort_order=sort_order,
        )
        # What a store keeps has been checked already, and may be more than users may make.
        return _page_of(Span, answer, STORED)

    async def update_rollout(
        self,
        rollout_id: str,
        input: TaskInput | Unset = UNSET,
        mode: RolloutMode | None | Unset = UNSET,
        resources_id: str | None | Unset = UNSET,
        status: RolloutStatus | Unset = UNSET,
        config: RolloutConfig | Unset = UNSET,
        metadata: dict[str, Any] | None | Unset = UNSET,
    ) -> Rollout:
        """Changes exactly the fields that are given."""
        if config is None:
            raise _none("config")
        if not isinstance(mode, Unset) and mode is not None:
            _require_one_of("mode", mode, RolloutMode)
        _require_one_of("status", status, RolloutStatus)
        update = _given(
            input=input, mode=mode, resources_id=resources_id, status=status, config=config, metadata=metadata
        )
        answer = await self._call("update_rollout", rollout_id=rollout_id, update=update)
        return Rollout.model_validate_json(answer)

    async def delete_rollout(self, rollout_id: str) -> None:
        """Removes a rollout with its attempts and spans, wherever it stands.

        `ValueError` for an unknown one.
        """
        await self._call("delete_rollout", id=rollout_id)

    async def update_attempt(
        self,
        rollout_id: str,
        attempt_id: str | Literal["latest"],
        status: AttemptStatus | Unset = UNSET,
        worker_id: str | Unset = UNSET,
        last_heartbeat_time: float | Unset = UNSET,
        metadata: dict[str, Any] | Unset = UNSET,
    ) -> Attempt:
        """Changes exactly the fields that are given."""
        _require_one_of("status", status, AttemptStatus)
        update = _given(
            status=status, worker_id=worker_id, last_heartbeat_time=last_heartbeat_time, metadata=metadata
        )
        answer = await self._call(
            "update_attempt", rollout_id=rollout_id, attempt_id=attempt_id, update=update
        )
        return Attempt.model_validate_json(answer)

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
        answer = await self._call(
            "query_workers",
            status_in=_list_or_none(status_in),
            worker_id_contains=worker_id_contains,
            filter_logic=filter_logic,
            sort_by=sort_by,
            sort_order=sort_order,
            limit=limit,
            offset=offset,
        )
        return _page_of(Worker, answer)

    async def get_worker_by_id(self, worker_id: str) -> Worker | None:
        """One worker."""
        return _optional(Worker, await self._call("get_worker_by_id", id=worker_id))

    async def update_worker(self, worker_id: str, heartbeat_stats: dict[str, Any] | Unset = UNSET) -> Worker:
        """Takes a worker's heartbeat in; an unknown worker is made, without stats the last ones stand."""
        if heartbeat_stats is None:
            raise TypeError("heartbeat_stats must be a dict: leave it out to keep the last ones")
        answer = await self._call(
            "update_worker", worker_id=worker_id, update=_given(heartbeat_stats=heartbeat_stats)
        )
        return Worker.model_validate_json(answer)


def _none(name: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"{name} cannot be None: leave it out to keep it", name)


def _require_one_of(name: str, value: Any, choices: Any) -> None:
    """Refuses None and any string that is not among the values of a `Literal`."""
    if value is None:
        raise _none(name)
    if isinstance(value, str) and value not in get_args(choices):
        known = ", ".join(get_args(choices))
        raise InvalidArgumentError(f"{name} must be one of {known}, got {str(value)!r}", name)


def _log_duplicate(span: Span) -> None:
    logger.error(
        "Duplicated span added: attempt %s of rollout %s has a span %s already, which stays as it is.",
        span.attempt_id,
        span.rollout_id,
        span.span_id,
    )


def encode_spans(spans: Sequence[Span]) -> bytes:
    """Spans as a JSON list."""
    return b"[" + b",".join(encode(_fields_of(span)) for span in spans) + b"]"


def _fields_of(span: Span) -> dict[str, Any]:
    # The fields themselves rather than the model, so that an error can say which of them has no JSON.
    return {**span.__dict__, **(span.__pydantic_extra__ or {})}


def _list_or_none(values: Sequence[T] | None) -> list[T] | None:
    return None if values is None else list(values)


def _list_of(kind: Any, answer: bytes) -> list[Any]:
    items: list[Any] = _reader(list[kind]).validate_json(answer)
    return items


def _optional(kind: type[T], answer: bytes) -> T | None:
    reader: TypeAdapter[T] = _reader(cast("Any", kind))
    return None if answer == b"null" else reader.validate_json(answer)


def _page_of(kind: Any, answer: bytes, context: Any = None) -> PaginatedResult[Any]:
    page: PaginatedResult[Any] = _reader(PaginatedResult[kind]).validate_json(answer, context=context)
    return page
