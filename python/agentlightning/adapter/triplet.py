"""Triplets of prompt, response and reward, one for each call of a model.

Not there yet of 0.3's module: `TraceTree`, `Transition`, and `visualize` and the hook `span_to_triplet` of
`TracerTraceToTriplet`. The trace is read by the Rust core, so a subclass with such a hook is refused rather
than left uncalled: change the triplets that `adapt` returns instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from agentlightning.adapter.base import TraceAdapter
from agentlightning.types import Span, Triplet

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

__all__ = ["RewardMatchPolicy", "TraceToTriplet", "TraceToTripletBase", "TracerTraceToTriplet"]

_triplets: TypeAdapter[list[Triplet]] = TypeAdapter(list[Triplet])


class RewardMatchPolicy(str, Enum):
    """Which call a reward goes to."""

    FIRST_SIBLING = "first_sibling"
    """The newest call without one among the reward's elder siblings."""
    FIRST_OCCURRENCE = "first_occurrence"
    """The newest call without one that had ended when the reward was given."""


class TraceToTripletBase(TraceAdapter[list[Triplet]]):
    """An adapter that yields triplets."""


class TracerTraceToTriplet(TraceToTripletBase):
    """Reads the triplets out of a trace that a tracer has recorded.

    A subclass may override `adapt`. It can't override 0.3's `span_to_triplet`, which nothing would call.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if hasattr(cls, "span_to_triplet"):
            raise TypeError(
                f"{cls.__name__}.span_to_triplet would never be called, for the Rust core reads the trace: "
                "override adapt() instead, and change the triplets that super().adapt() returns"
            )

    def __init__(
        self,
        repair_hierarchy: bool = True,
        llm_call_match: str = r"openai\.chat\.completion",
        agent_match: str | None = None,
        exclude_llm_call_in_reward: bool = True,
        reward_match: RewardMatchPolicy | str = RewardMatchPolicy.FIRST_OCCURRENCE,
        _skip_empty_token_spans: bool = False,
    ) -> None:
        """Makes an adapter.

        Args:
            repair_hierarchy: Whether spans without a telling parent are put under the span that encloses
                them.
            llm_call_match: A regular expression that is found in the names of spans that are calls of a
                model.
            agent_match: A regular expression that is found in the names of the agents whose calls count; all
                by default.
            exclude_llm_call_in_reward: Whether calls made to compute a reward are left out.
            reward_match: Which call a reward goes to.
            _skip_empty_token_spans: Whether calls without token ids are left out.
        """
        self.repair_hierarchy = repair_hierarchy
        self.llm_call_match = llm_call_match
        self.agent_match = agent_match
        self.exclude_llm_call_in_reward = exclude_llm_call_in_reward
        self.reward_match = reward_match
        self._skip_empty_token_spans = _skip_empty_token_spans

    def adapt(self, source: Sequence[Span | ReadableSpan], /) -> list[Triplet]:
        """The triplets of a trace, in the order of its tree.

        Raises:
            ValueError: for an empty trace, or one that goes in circles.
        """
        from agentlightning import _core
        from agentlightning._native import as_exception, encode
        from agentlightning.store.native import encode_spans

        if not source:
            raise ValueError("No spans provided: a trace without spans has no triplets.")
        spans = [
            span if isinstance(span, Span) else Span.from_opentelemetry(span, "dummy", "dummy", 0)
            for span in source
        ]
        options: dict[str, Any] = {
            "repair_hierarchy": self.repair_hierarchy,
            "llm_call_match": self.llm_call_match,
            "agent_match": self.agent_match,
            "exclude_llm_call_in_reward": self.exclude_llm_call_in_reward,
            "reward_match": RewardMatchPolicy(self.reward_match).value,
            "skip_empty_token_spans": self._skip_empty_token_spans,
        }
        try:
            return _triplets.validate_json(_core.trace_to_triplets(encode_spans(spans), encode(options)))
        except _core.CoreError as error:
            raise as_exception(*error.args) from None


TraceToTriplet = TracerTraceToTriplet
"""A shorter name."""
