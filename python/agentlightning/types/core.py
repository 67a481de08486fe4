"""Rollouts, attempts, workers and what surrounds them. All times are wall-clock seconds since the epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import (
    TYPE_CHECKING,
    Any,
    Generic,
    List,
    Literal,
    Protocol,
    TypedDict,
    TypeVar,
    Union,
    overload,
)

from pydantic import BaseModel, ConfigDict, Field, model_validator
from typing_extensions import TypeAlias

from .tracer import Span, SpanCoreFields

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

    from agentlightning.litagent import LitAgent
    from agentlightning.runner import Runner
    from agentlightning.tracer import Tracer

__all__ = [
    "Attempt",
    "AttemptStatus",
    "AttemptedRollout",
    "Dataset",
    "EnqueueRolloutRequest",
    "FilterField",
    "FilterOptions",
    "GenericResponse",
    "Hook",
    "PaginatedResult",
    "ParallelWorkerBase",
    "Rollout",
    "RolloutConfig",
    "RolloutLegacy",
    "RolloutMode",
    "RolloutRawResult",
    "RolloutRawResultLegacy",
    "RolloutStatus",
    "SortOptions",
    "Task",
    "TaskIfAny",
    "TaskInput",
    "Triplet",
    "Worker",
    "WorkerStatus",
]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

RolloutStatus: TypeAlias = Literal[
    "queuing", "preparing", "running", "failed", "succeeded", "cancelled", "requeuing"
]
"""Where a rollout stands. `failed`, `succeeded` and `cancelled` are terminal."""

AttemptStatus: TypeAlias = Literal["preparing", "running", "failed", "succeeded", "unresponsive", "timeout"]
"""Where one attempt stands."""

RolloutMode: TypeAlias = Literal["train", "val", "test"]
"""What a rollout is for."""

WorkerStatus: TypeAlias = Literal["idle", "busy", "unknown"]
"""What is known of a worker."""

TaskInput: TypeAlias = Any
"""A task: any JSON value."""

# Not-a-number and infinities have no JSON; they cross the wire as the strings "NaN", "Infinity" and
# "-Infinity", so that nothing that was there turns into null.
_WIRE = ConfigDict(ser_json_inf_nan="strings")


class Triplet(BaseModel):
    """Prompt, response and reward of one model call."""

    model_config = _WIRE

    prompt: Any
    response: Any
    reward: float | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)


class RolloutConfig(BaseModel):
    """Time limits and retries of a rollout."""

    timeout_seconds: float | None = None
    """Seconds from the start of an attempt until it counts as timed out."""
    unresponsive_seconds: float | None = None
    """Seconds of silence until an attempt counts as unresponsive."""
    max_attempts: int = Field(default=1, ge=1)
    """How many attempts are made automatically, the first included."""
    retry_condition: list[AttemptStatus] = Field(default_factory=list)
    """The attempt statuses after which another attempt is made."""


class Rollout(BaseModel):
    """One task to be run."""

    model_config = _WIRE

    rollout_id: str
    input: TaskInput
    start_time: float
    end_time: float | None = None
    mode: RolloutMode | None = None
    resources_id: str | None = None
    status: RolloutStatus = "queuing"
    config: RolloutConfig = Field(default_factory=RolloutConfig)
    metadata: dict[str, Any] | None = None


class Attempt(BaseModel):
    """One try at a rollout."""

    model_config = _WIRE

    rollout_id: str
    attempt_id: str
    sequence_id: int
    """1 for the first attempt of a rollout, 2 for the second, and so on."""
    start_time: float
    end_time: float | None = None
    status: AttemptStatus = "preparing"
    worker_id: str | None = None
    last_heartbeat_time: float | None = None
    metadata: dict[str, Any] | None = None


class AttemptedRollout(Rollout):
    """A rollout together with one attempt at it: what a runner holds."""

    attempt: Attempt

    @model_validator(mode="after")
    def _attempt_is_of_this_rollout(self) -> AttemptedRollout:
        if self.attempt.rollout_id != self.rollout_id:
            raise ValueError(
                f"attempt.rollout_id is {self.attempt.rollout_id!r}, "
                f"but it must be that of the rollout, {self.rollout_id!r}"
            )
        return self

    @property
    def rollout(self) -> Rollout:
        """The plain rollout. It shares input, config and metadata with this object."""
        return Rollout.model_construct(**{name: getattr(self, name) for name in Rollout.model_fields})


class EnqueueRolloutRequest(BaseModel):
    """A rollout to be put into the queue."""

    model_config = _WIRE

    input: TaskInput
    mode: RolloutMode | None = None
    resources_id: str | None = None
    """The resources to pin; the latest at the moment of enqueueing when None."""
    config: RolloutConfig | None = None
    metadata: dict[str, Any] | None = None


class Worker(BaseModel):
    """A runner process, as the store knows it."""

    model_config = _WIRE

    worker_id: str
    status: WorkerStatus = "unknown"
    heartbeat_stats: dict[str, Any] | None = None
    last_heartbeat_time: float | None = None
    last_dequeue_time: float | None = None
    last_busy_time: float | None = None
    last_idle_time: float | None = None
    current_rollout_id: str | None = None
    current_attempt_id: str | None = None


class GenericResponse(BaseModel):
    """A plain answer of the legacy server. Deprecated."""

    status: str = "success"
    message: str | None = None
    data: dict[str, Any] | None = None


class Task(BaseModel):
    """A task of the legacy server. Deprecated."""

    rollout_id: str
    input: TaskInput
    mode: RolloutMode | None = None
    resources_id: str | None = None
    create_time: float | None = None
    """When it was put into the queue."""
    last_claim_time: float | None = None
    num_claims: int | None = None
    """How often it was handed out, the last time included."""
    last_requeue_time: float | None = None
    """When it was last put back, because whoever had claimed it did not answer in time."""
    num_requeues: int | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)


class TaskIfAny(BaseModel):
    """The legacy server's answer to a request for work. Deprecated."""

    is_available: bool
    task: Task | None = None


class RolloutLegacy(BaseModel):
    """A finished task of the legacy server. Deprecated."""

    rollout_id: str
    task: Task | None = None
    final_reward: float | None = None
    triplets: list[Triplet] | None = None
    trace: list[dict[str, Any]] | None = None
    logs: list[str] | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)


RolloutRawResult: TypeAlias = Union[float, List["ReadableSpan"], List["Span"], List["SpanCoreFields"], None]
"""What an agent may return: nothing, a final reward, or spans."""

RolloutRawResultLegacy: TypeAlias = Union[
    float, List["Triplet"], List["dict[str, Any]"], List["ReadableSpan"], "RolloutLegacy", None
]
"""What a legacy agent may return."""


class ParallelWorkerBase:
    """Something that is set up once in the main process and once in each worker.

    The order is `init` (main), `init_worker` (each worker), `run`, `teardown_worker`, `teardown` (main).
    """

    worker_id: int | None

    def __init__(self) -> None:
        self.worker_id = None

    def init(self, *args: Any, **kwargs: Any) -> None:
        """Sets up what all workers share."""

    def init_worker(self, worker_id: int, *args: Any, **kwargs: Any) -> None:
        """Sets up one worker."""
        self.worker_id = worker_id

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Does the work."""

    def teardown_worker(self, worker_id: int, *args: Any, **kwargs: Any) -> None:
        """Undoes `init_worker`."""

    def teardown(self, *args: Any, **kwargs: Any) -> None:
        """Undoes `init`."""


class Dataset(Protocol, Generic[T_co]):
    """Anything with a length and an index, such as a list."""

    def __getitem__(self, index: int, /) -> T_co: ...

    def __len__(self) -> int: ...


class Hook(ParallelWorkerBase):
    """Called by a runner around each attempt."""

    async def on_trace_start(
        self, *, agent: LitAgent[Any], runner: Runner[Any], tracer: Tracer, rollout: Rollout
    ) -> None:
        """Runs inside the trace, before the agent."""

    async def on_trace_end(
        self, *, agent: LitAgent[Any], runner: Runner[Any], tracer: Tracer, rollout: Rollout
    ) -> None:
        """Runs inside the trace, after the agent."""

    async def on_rollout_start(self, *, agent: LitAgent[Any], runner: Runner[Any], rollout: Rollout) -> None:
        """Runs before the attempt."""

    async def on_rollout_end(
        self,
        *,
        agent: LitAgent[Any],
        runner: Runner[Any],
        rollout: Rollout,
        spans: list[Any],
    ) -> None:
        """Runs after the attempt; `spans` are those stored for it."""


class FilterField(TypedDict, total=False):
    """Conditions on one field."""

    exact: Any
    within: Sequence[Any]
    contains: str


FilterOptions: TypeAlias = Mapping[
    str,
    Union[
        FilterField,
        Literal["and", "or"],
        Mapping[str, FilterField],
        Sequence[Mapping[str, FilterField]],
    ],
]
"""Conditions by field; `_aggregate` says how they are put together, `_must` holds those that always apply."""


class SortOptions(TypedDict):
    """What to sort by."""

    name: str
    order: Literal["asc", "desc"]


class PaginatedResult(BaseModel, Sequence[T], Generic[T]):
    """One page of a query's answer; it acts as the sequence of its items."""

    items: Sequence[T]
    limit: int
    """The limit asked for; -1 for none."""
    offset: int
    """How many matches were passed over before the first item."""
    total: int
    """How many items match in all."""

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...

    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[T]:  # type: ignore[override]
        return iter(self.items)

    def __repr__(self) -> str:
        end = "" if self.limit == -1 else str(self.offset + self.limit)
        if not self.items:
            shown = "empty"
        elif len(self.items) == 1:
            shown = repr(self.items[0])
        else:
            shown = f"[{self.items[0]!r}, ...]"
        return f"<{type(self).__name__.partition('[')[0]} ({self.offset}:{end} of {self.total}) {shown}>"

    def __str__(self) -> str:
        return repr(self)
