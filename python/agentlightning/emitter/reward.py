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
# Followed by the number of the step.
_STEP = "step."
_AGENTOPS_OUTPUTS = ("agentops.task.output", "agentops.entity.output")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, bool, float))


def _dimensions(reward: Any, primary_key: str | None) -> list[dict[str, Any]]:
    if isinstance(reward, dict):
        for key, value in reward.items():
            if not _is_number(value):
                raise ValueError(f"Reward dimension {key!r} must be a number, got {type(value)}.")
        if primary_key is None:
            raise ValueError("A reward with several dimensions needs primary_key.")
        if primary_key not in reward:
            raise ValueError(
                f"primary_key {primary_key!r} is not one of the reward's dimensions: {list(reward)}."
            )
        keys = [primary_key, *(key for key in reward if key != primary_key)]
        return [_dimension(key, reward[key]) for key in keys]
    if isinstance(reward, (list, tuple)):
        if not reward:
            raise ValueError("A reward by steps needs one step at least.")
        for index, value in enumerate(reward):
            if not _is_number(value):
                raise ValueError(f"Reward of step {index} must be a number, got {type(value)}.")
        steps = [_dimension(f"{_STEP}{index}", value) for index, value in enumerate(reward)]
        return [_dimension(_PRIMARY, sum(map(float, reward))), *steps]
    if not _is_number(reward):
        raise TypeError(
            f"Reward must be a number, a dict of numbers by dimension, or a list of numbers by step, got "
            f"{type(reward)}. Convert it with float() or tolist()."
        )
    return [_dimension(_PRIMARY, reward)]


def _dimension(name: str, value: float) -> dict[str, Any]:
    return {_NAME: name, _VALUE: float(value)}


def emit_reward(
    reward: float | dict[str, float] | Sequence[float],
    *,
    primary_key: str | None = None,
    attributes: dict[str, Any] | None = None,
    propagate: bool = True,
) -> SpanCoreFields:
    """Records a reward.

    Args:
        reward: A number, where True is 1 and False is 0; or numbers by name of their dimension; or a list
            with a number for each step of the attempt, in their order. What counts of a list, where only one
            number can, is its sum.
        primary_key: The dimension that counts where only one number can.
        attributes: Further attributes of the span, such as links and tags.
        propagate: Whether the active tracer takes the span. If not, it is only returned.

    Raises:
        TypeError: for a reward that is none of these.
        ValueError: for a dimension or step that is no number, a primary key that is none of the dimensions,
            or more than a span may hold.
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


def get_step_rewards(span: SpanLike) -> list[float]:
    """The rewards of the single steps in a span, in the order of the steps; none if it is no such reward."""
    steps: dict[int, float] = {}
    for reward in get_rewards_from_span(span):
        number = reward.name.removeprefix(_STEP)
        if number != reward.name and number.isdecimal():
            steps[int(number)] = reward.value
    return [steps[number] for number in sorted(steps)]


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
