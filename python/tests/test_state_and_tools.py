"""State events, tool calls, and how much a span may hold."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.emitter import (
    emit_annotation,
    emit_exception,
    emit_failed,
    emit_finished,
    emit_message,
    emit_object,
    emit_reward,
    emit_started,
    emit_tool_call,
    failure_reason,
    get_state_event,
    get_step_rewards,
    operation,
)
from agentlightning.semconv import AGL_STATE, StateEvent

STATE = "agentlightning.state"
MEBIBYTE = 1024 * 1024


def test_states_of_the_attempt_and_of_its_parts() -> None:
    started = emit_started(propagate=False)
    assert (started.name, started.attributes) == (AGL_STATE, {f"{STATE}.event": "started"})
    assert started.status.status_code == "OK"
    finished = emit_finished("planner", attributes={"turns": {"n": 3}}, propagate=False)
    assert finished.attributes == {f"{STATE}.event": "finished", f"{STATE}.name": "planner", "turns.n": 3}
    assert [get_state_event(span) for span in (started, finished)] == [
        StateEvent.STARTED,
        StateEvent.FINISHED,
    ]
    assert get_state_event(emit_reward(1, propagate=False)) is None


def test_a_failure_says_why() -> None:
    try:
        raise KeyError("gone")
    except KeyError as error:
        span = emit_failed(error, propagate=False)
    assert (span.status.status_code, span.status.description) == ("ERROR", "'gone'")
    assert span.attributes[f"{STATE}.event"] == "failed"
    assert span.attributes[f"{STATE}.reason"] == "error"
    assert span.attributes["exception.type"] == "KeyError"
    assert "test_a_failure_says_why" in str(span.attributes["exception.stacktrace"])
    in_words = emit_failed("no resources", reason="resources", name="step", propagate=False)
    assert in_words.attributes == {
        f"{STATE}.event": "failed",
        f"{STATE}.name": "step",
        f"{STATE}.reason": "resources",
    }
    assert in_words.status.description == "no resources"
    assert emit_failed(propagate=False).attributes[f"{STATE}.reason"] == "error"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (asyncio.CancelledError(), "cancelled"),
        (KeyboardInterrupt(), "cancelled"),
        (TimeoutError(), "timeout"),
        (asyncio.TimeoutError(), "timeout"),
        (ValueError("x"), "error"),
        ("words", "error"),
    ],
)
def test_reasons(error: BaseException | str, reason: str) -> None:
    assert failure_reason(error) == reason
    assert emit_failed(error, propagate=False).attributes[f"{STATE}.reason"] == reason


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: emit_started(1), "name"),  # type: ignore[arg-type]
        (lambda: emit_failed(1), "error"),  # type: ignore[arg-type]
        (lambda: emit_failed("x", reason=1), "reason"),  # type: ignore[arg-type]
        (lambda: emit_tool_call(1), "name"),  # type: ignore[arg-type]
        (lambda: emit_tool_call("t", 1), "arguments"),  # type: ignore[arg-type]
        (lambda: emit_tool_call("t", error=1), "error"),  # type: ignore[arg-type]
    ],
)
def test_bad_arguments_are_named_before_the_lack_of_a_tracer(call: Any, field: str) -> None:
    with pytest.raises(TypeError, match=f"^{field} must be"):
        call()


def test_without_a_tracer() -> None:
    for emit in (emit_started, emit_finished, emit_failed, lambda: emit_tool_call("t")):
        with pytest.raises(RuntimeError, match="No active tracer found"):
            emit()


def test_tool_call() -> None:
    span = emit_tool_call(
        "search",
        {"query": "rust", "when": {1, 2} and object},
        {"hits": [1, 2]},
        call_id="call_1",
        description="Searches.",
        attributes={"engine": {"name": "x"}},
        propagate=False,
    )
    assert span.name == "execute_tool search"
    arguments = json.loads(str(span.attributes.pop("gen_ai.tool.call.arguments")))
    assert arguments == {"query": "rust", "when": str(object)}
    assert span.attributes == {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "search",
        "gen_ai.tool.type": "function",
        "gen_ai.tool.call.id": "call_1",
        "gen_ai.tool.description": "Searches.",
        "gen_ai.tool.call.result": '{"hits": [1, 2]}',
        "engine.name": "x",
    }
    assert (span.status.status_code, span.start_time) == ("OK", span.end_time)


def test_tool_call_with_text_none_and_nothing() -> None:
    span = emit_tool_call("t", '{"a": 1}', "done", propagate=False)
    assert span.attributes["gen_ai.tool.call.arguments"] == '{"a": 1}'
    assert span.attributes["gen_ai.tool.call.result"] == "done"
    assert emit_tool_call("t", {}, None, propagate=False).attributes["gen_ai.tool.call.result"] == "null"
    assert "gen_ai.tool.call.result" not in emit_tool_call("t", propagate=False).attributes
    with pytest.raises(ValueError, match="name must not be empty"):
        emit_tool_call("", propagate=False)


def test_tool_call_that_failed() -> None:
    span = emit_tool_call("t", error=LookupError("no such page"), start_time=1000.0, propagate=False)
    assert (span.status.status_code, span.status.description) == ("ERROR", "no such page")
    assert span.attributes["error.type"] == "LookupError"
    assert span.attributes["exception.message"] == "no such page"
    assert span.start_time == 1000.0
    assert span.end_time is not None
    assert span.end_time > 1000.0
    assert emit_tool_call("t", error="refused", propagate=False).attributes["error.type"] == "_OTHER"


async def test_they_reach_the_store_under_what_is_open() -> None:
    store = agl.InMemoryLightningStore()
    rollout = await store.start_rollout("task")
    tracer = agl.OtelTracer(instrument=False)
    with tracer.lifespan(store):
        async with tracer.trace_context(rollout_id=rollout.rollout_id, attempt_id=rollout.attempt.attempt_id):
            emit_started()
            with operation(name="planner"):
                emit_tool_call("search", {"q": 1}, error=ValueError("x"), start_time=1.7e9)
            emit_failed(asyncio.CancelledError())
    spans = list(await store.query_spans(rollout.rollout_id))
    assert [span.name for span in spans] == [
        STATE,
        "execute_tool search",
        "agentlightning.operation",
        STATE,
    ]
    started, tool, planner, failed = spans
    assert tool.parent_id == planner.span_id
    assert (tool.status.status_code, tool.status.description) == ("ERROR", "x")
    assert tool.start_time == 1.7e9
    assert get_state_event(started) is StateEvent.STARTED
    assert failed.attributes[f"{STATE}.reason"] == "cancelled"
    assert failed.status.status_code == "ERROR"


# How much a span may hold. 0.3 takes whatever it is given, and leaves it to the store and to memory.


@pytest.mark.parametrize(
    ("emit", "field"),
    [
        (lambda text: emit_message(text), "agentlightning.message.body"),
        (lambda text: emit_message("m", {"notes": {"long": text}}), "notes.long"),
        (lambda text: emit_object(text), "agentlightning.object.literal"),
        (lambda text: emit_object([text]), "agentlightning.object.json"),
        (lambda text: emit_object(text.encode()), "agentlightning.object.literal"),
        (lambda text: emit_annotation({"a": 1, "b": [text, text]}), "b"),
        (lambda text: emit_reward(1.0, attributes={"why": text}), "why"),
        (lambda text: emit_exception(ValueError(), {"context": text}), "context"),
        (lambda text: emit_tool_call("t", {"q": text}), "gen_ai.tool.call.arguments"),
        (lambda text: emit_started(attributes={"x": text}), "x"),
        (lambda text: operation(name=text), "agentlightning.operation.name"),
    ],
)
def test_too_much_is_refused_by_name(emit: Any, field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGL_EMITTER_MAX_BYTES", "1000")
    with pytest.raises(ValueError, match=rf"attribute '{field}' takes \d+ bytes.*AGL_EMITTER_MAX_BYTES"):
        emit("é" * 501)


def test_what_fits_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGL_EMITTER_MAX_BYTES", "1000")
    # Its upper bound is above the limit, its size is not.
    text = "é" * 499
    assert emit_annotation({"a": text}, propagate=False).attributes == {"a": text}


def test_the_limits_are_there_by_default() -> None:
    emit_object("x" * 15 * MEBIBYTE, propagate=False)
    with pytest.raises(ValueError, match=r"agentlightning\.object\.literal"):
        emit_object("x" * 17 * MEBIBYTE, propagate=False)
    with pytest.raises(ValueError, match=r"at most 10000 attributes, .* 10001, up to 'a\.10000\.x'"):
        emit_annotation({"a": [{"x": index} for index in range(10_001)]}, propagate=False)


def test_what_contains_itself_is_refused() -> None:
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(ValueError, match="contains itself"):
        emit_annotation({"a": circle}, propagate=False)
    with pytest.raises(RuntimeError, match="JSON serializable"):
        emit_object(circle, propagate=False)


class Hostile:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    __str__ = __repr__


class HostileError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no message")


def test_what_an_agent_passes_around_never_breaks_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AGL_EMITTER_MAX_BYTES", "1000")
    circle: dict[str, Any] = {}
    circle["me"] = circle
    with caplog.at_level(logging.WARNING), operation(propagate=False) as op:
        op.set_input("x" * 1001, circle, hostile=Hostile())
        op.set_output({"deep": {1: Hostile()}})
    attributes = op.span().attributes
    assert "1001 bytes" in str(attributes["agentlightning.operation.input.args.0"])
    assert "agentlightning.operation.input.args.0 is not recorded" in caplog.text
    assert "agentlightning.operation.input.args.1" in attributes
    assert "Hostile" in str(attributes["agentlightning.operation.input.hostile"])
    assert any(key.startswith("agentlightning.operation.output") for key in attributes)
    emit_exception(HostileError(), propagate=False)
    assert emit_failed(HostileError(), propagate=False).attributes["exception.type"] == "HostileError"


def test_long_exceptions_are_shortened() -> None:
    span = emit_failed(ValueError("begin" + "x" * MEBIBYTE + "end"), propagate=False)
    message = str(span.attributes["exception.message"])
    assert len(message) < 70_000
    assert message.startswith("begin")
    assert message.endswith("end")
    assert "characters left out" in message


# Rewards by step.


def test_reward_by_steps_keeps_their_order() -> None:
    span = emit_reward([0.25, -1, True, *range(9)], propagate=False)
    assert agl.get_reward_value(span) == 36.25
    assert get_step_rewards(span) == [0.25, -1.0, 1.0, *range(9)]
    names = [reward.name for reward in agl.get_rewards_from_span(span)]
    assert names == ["primary", *(f"step.{index}" for index in range(12))]
    assert get_step_rewards(emit_reward(1, propagate=False)) == []
    with pytest.raises(ValueError, match="step 1 must be a number"):
        emit_reward([1.0, "x"], propagate=False)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="one step at least"):
        emit_reward([], propagate=False)


def test_the_name_reward_is_the_decorator_and_the_module() -> None:
    # 0.3: whichever was imported last.
    import agentlightning.reward as module
    from agentlightning.reward import reward

    assert agl.reward is module
    assert module.reward is reward is agl.emitter.reward

    @agl.reward
    def judge() -> float:
        """Judges."""
        return 0.5

    assert (judge.__name__, judge.__doc__) == ("judge", "Judges.")
    with pytest.raises(RuntimeError, match="No active tracer found"):
        judge()
