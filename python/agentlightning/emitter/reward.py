"""Rewards: how they are written into spans, and how they are read back."""

from __future__ import annotations

import functools
import inspect
import json
import logging
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from agentlightning.emitter.annotation import emit_annotation
from agentlightning.semconv import (
    AGL_ANNOTATION,
    LightningSpanAttributes,
    RewardAttributes,
    RewardPydanticModel,
)

if TYPE_CHECKING:
    from agentlightning.types import SpanCoreFields, SpanLike

logger = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])
SpanT = TypeVar("SpanT")

_PREFIX = LightningSpanAttributes.REWARD.value
_NAME = RewardAttributes.REWARD_NAME.value
_VALUE = RewardAttributes.REWARD_VALUE.value
# Only these keys are rewards: `agentlightning.reward_model`, say, is somebody's own attribute.
_DIMENSION = re.compile(rf"{re.escape(_PREFIX)}\.(\d+)\.({_NAME}|{_VALUE})")
_PRIMARY = "primary"
_AGENTOPS_OUTPUTS = ("agentops.task.output", "agentops.entity.output")


def _dimensions(reward: Any, primary_key: str | None) -> list[dict[str, Any]]:
    if isinstance(reward, dict):
        for key, value in reward.items():
            if not isinstance(value, (int, bool, float)):
                raise ValueError(f"Reward dimension {key!r} must be a number, got {type(value)}.")
        if primary_key is None:
            raise ValueError("A reward with several dimensions needs primary_key.")
        if primary_key not in reward:
            raise ValueError(
                f"primary_key {primary_key!r} is not one of the reward's dimensions: {list(reward)}."
            )
        keys = [primary_key, *(key for key in reward if key != primary_key)]
        return [{_NAME: key, _VALUE: float(reward[key])} for key in keys]
    if not isinstance(reward, (int, bool, float)):
        raise TypeError(f"Reward must be a number, or a dict of numbers, got {type(reward)}.")
    return [{_NAME: _PRIMARY, _VALUE: float(reward)}]


def emit_reward(
    reward: float | dict[str, float],
    *,
    primary_key: str | None = None,
    attributes: dict[str, Any] | None = None,
    propagate: bool = True,
) -> SpanCoreFields:
    """Records a reward.

    Args:
        reward: A number, or numbers by name of their dimension.
        primary_key: The dimension that counts where only one number can.
        attributes: Further attributes of the span, such as links and tags.
        propagate: Whether the active tracer takes the span. If not, it is only returned.

    Raises:
        TypeError: for a reward that is no number.
        ValueError: for a dimension that is no number, or a primary key that is none of them.
        RuntimeError: without an active tracer.
    """
    payload: dict[str, Any] = {_PREFIX: _dimensions(reward, primary_key)}
    payload.update(attributes or {})
    return emit_annotation(payload, propagate=propagate)


def get_rewards_from_span(span: SpanLike) -> list[RewardPydanticModel]:
    """The dimensions of the reward in a span, the primary one first; none if it holds no reward.

    A dimension without a name or a number is left out, with a log line: one odd attribute must not keep the
    rest of a trace from being read.
    """
    found: dict[int, dict[str, Any]] = {}
    for key, value in (span.attributes or {}).items():
        match = _DIMENSION.fullmatch(key)
        if match:
            found.setdefault(int(match[1]), {})[match[2]] = value
    rewards: list[RewardPydanticModel] = []
    for index in sorted(found):
        try:
            rewards.append(RewardPydanticModel.model_validate(found[index]))
        except ValueError:
            logger.warning("Reward dimension %d is incomplete and left out: %r", index, found[index])
    return rewards


def get_reward_value(span: SpanLike) -> float | None:
    """The reward in a span (its primary dimension), or None if it holds none."""
    rewards = get_rewards_from_span(span)
    if rewards:
        return rewards[0].value
    attributes = span.attributes or {}
    for key in _AGENTOPS_OUTPUTS:
        output: Any = attributes.get(key)
        if isinstance(output, str):
            try:
                output = json.loads(output)
            except ValueError:
                continue
        if isinstance(output, dict) and output.get("type") == "reward":
            value = output.get("value")
            if value is not None and not isinstance(value, float):
                logger.error("The reward in %s is not a float: %r", key, value)
            return value
    # How versions before 0.3 wrote it.
    if "reward" in attributes and getattr(span, "name", None) == AGL_ANNOTATION:
        return attributes["reward"]  # type: ignore[return-value]
    return None


def is_reward_span(span: SpanLike) -> bool:
    """Whether a span holds a reward."""
    return get_reward_value(span) is not None


def find_reward_spans(spans: Sequence[SpanT]) -> list[SpanT]:
    """The spans that hold a reward, in the order given."""
    return [span for span in spans if is_reward_span(span)]  # type: ignore[arg-type]


def find_final_reward(spans: Sequence[SpanLike]) -> float | None:
    """The reward in the last of the spans that hold one, in the order given."""
    for span in reversed(spans):
        value = get_reward_value(span)
        if value is not None:
            return value
    return None


def reward(fn: F) -> F:
    """Decorates a function so that the number it returns is recorded as a reward.

    Deprecated: call `emit_reward`.
    """

    def record(result: Any) -> Any:
        if isinstance(result, (int, bool, float)):
            emit_reward(float(result))
        else:
            logger.warning("Reward is None or not a number and is not recorded: %r", result)
        return result

    if inspect.iscoroutinefunction(fn):

        @functools.wraps(fn)
        async def async_wrapper(*args: Any, **kwargs: Any) -> Any:
            return record(await fn(*args, **kwargs))

        return async_wrapper  # type: ignore[return-value]

    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return record(fn(*args, **kwargs))

    return wrapper  # type: ignore[return-value]
