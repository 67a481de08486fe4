"""What emitters put into spans, and what readers make of it."""

from __future__ import annotations

import asyncio
import importlib
import sys
from dataclasses import dataclass, field
from typing import Any

import pytest
from opentelemetry import trace

import agentlightning as agl
from agentlightning.emitter import (
    emit_annotation,
    emit_exception,
    emit_message,
    emit_object,
    emit_reward,
    emit_started,
    emit_tool_call,
    encode_object,
    find_final_reward,
    find_reward_spans,
    get_message_value,
    get_object_value,
    get_reward_value,
    get_rewards_from_span,
    is_reward_span,
    operation,
)
from agentlightning.semconv import AGL_ANNOTATION
from agentlightning.tracer import DummyTracer, clear_active_tracer, get_active_tracer, set_active_tracer
from agentlightning.utils.otel import (
    extract_links_from_attributes,
    extract_tags_from_attributes,
    make_link_attributes,
    make_tag_attributes,
    query_linked_spans,
)

# The package also has functions of these names.
annotation_module = importlib.import_module("agentlightning.emitter.annotation")
reward_module = importlib.import_module("agentlightning.emitter.reward")

OP = "agentlightning.operation"


@dataclass
class FakeSpan:
    """Something with attributes, and no name."""

    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass
class NamedSpan(FakeSpan):
    name: str = AGL_ANNOTATION


def test_reward_of_a_number() -> None:
    span = emit_reward(1, propagate=False)
    assert span.attributes == {
        "agentlightning.reward.0.name": "primary",
        "agentlightning.reward.0.value": 1.0,
    }
    assert isinstance(span.attributes["agentlightning.reward.0.value"], float)
    assert span.status.status_code == "OK"
    assert span.start_time == span.end_time


def test_reward_with_dimensions_has_the_primary_one_first() -> None:
    rewards = get_rewards_from_span(emit_reward({"b": 1, "a": True}, primary_key="a", propagate=False))  # type: ignore[arg-type]
    assert [(reward.name, reward.value) for reward in rewards] == [("a", 1.0), ("b", 1.0)]


@pytest.mark.parametrize(
    ("reward", "primary_key", "error"),
    [
        ("1", None, TypeError),
        (None, None, TypeError),
        ({"a": "x"}, "a", ValueError),
        ({"a": 1.0}, None, ValueError),
        ({"a": 1.0}, "b", ValueError),
    ],
)
def test_rewards_that_are_none(reward: Any, primary_key: str | None, error: type[Exception]) -> None:
    with pytest.raises(error):
        emit_reward(reward, primary_key=primary_key, propagate=False)


def test_reward_goes_through_the_module_s_emit_annotation(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, Any]] = []

    def fake(payload: Any, *, propagate: bool) -> str:
        calls.append((payload, propagate))
        return "what it returned"

    monkeypatch.setattr(reward_module, "emit_annotation", fake)
    assert emit_reward(0.5, attributes={"agentlightning.tag.0": "t"}) == "what it returned"
    dimensions = [{"name": "primary", "value": 0.5}]
    assert calls == [({"agentlightning.reward": dimensions, "agentlightning.tag.0": "t"}, True)]


def test_reward_readers() -> None:
    assert get_reward_value(FakeSpan()) is None
    assert get_reward_value(FakeSpan({"agentops.task.output": {"type": "reward", "value": None}})) is None
    assert get_reward_value(FakeSpan({"agentops.task.output": '{"type":"reward","value":1}'})) == 1
    assert get_reward_value(FakeSpan({"agentops.entity.output": '{"type":"reward","value":0.5}'})) == 0.5
    assert get_reward_value(NamedSpan({"reward": 1})) == 1
    assert get_reward_value(NamedSpan({"reward": 1}, name="other")) is None
    low, high = emit_reward(0.0, propagate=False), emit_reward(2.0, propagate=False)
    spans: list[Any] = [low, FakeSpan({"x": 1}), high, FakeSpan({"y": 1})]
    assert find_final_reward(spans) == 2.0
    assert find_final_reward([low, FakeSpan()]) == 0.0
    assert find_reward_spans(spans) == [low, high]
    assert is_reward_span(low)


@pytest.mark.parametrize(
    "attributes",
    [
        {"agentlightning.reward": 1.0},
        {"agentlightning.reward_model": "x"},
        {"agentlightning.reward.0.name": "primary"},
        {"agentlightning.reward.0.value": "much"},
        {"agentops.task.output": "[1]"},
        {"agentops.task.output": "no json"},
    ],
)
def test_odd_attributes_are_no_reward_and_no_error(attributes: dict[str, Any]) -> None:
    assert get_reward_value(FakeSpan(attributes)) is None
    assert get_rewards_from_span(FakeSpan(attributes)) == []


def test_rewards_with_a_gap_are_read_nevertheless() -> None:
    attributes = {"agentlightning.reward.3.name": "c", "agentlightning.reward.3.value": 0.25}
    assert get_reward_value(FakeSpan(attributes)) == 0.25


def test_annotation_is_flattened() -> None:
    span = emit_annotation({"a": [{"x": 1}], "b": [1, 2], "c": []}, propagate=False)
    assert span.attributes == {"a.0.x": 1, "b": [1, 2]}
    span = emit_annotation({"meta": {"tag": "foo"}, "score": 1.5}, propagate=False)
    assert span.attributes == {"meta.tag": "foo", "score": 1.5}


def test_bad_payloads_are_told_before_the_lack_of_a_tracer() -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        emit_annotation({"bad": {"set": {1}}})
    with pytest.raises(RuntimeError, match="JSON serializable"):
        emit_object(object())
    with pytest.raises(TypeError):
        emit_exception("no exception")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        emit_message(1)  # type: ignore[arg-type]


def test_without_a_tracer() -> None:
    for emit in (
        lambda: emit_reward(1.0),
        lambda: emit_message("m"),
        lambda: emit_object(1),
        lambda: emit_exception(ValueError()),
        lambda: emit_annotation({"a": 1}),
        lambda: operation(name="x").__enter__(),
    ):
        with pytest.raises(RuntimeError, match="No active tracer found"):
            emit()


EMITTERS: dict[str, list[Any]] = {
    "annotation": [emit_annotation, {"a": 1}],
    "exception": [emit_exception, ValueError()],
    "message": [emit_message, "m"],
    "object": [emit_object, 1],
    "reward": [emit_reward, 1.0],
    "state": [emit_started],
    "tool": [emit_tool_call, "search"],
}


@pytest.mark.parametrize("name", EMITTERS)
def test_not_propagating_never_looks_for_a_tracer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise AssertionError("looked for a tracer")

    module = annotation_module if name == "reward" else sys.modules[f"agentlightning.emitter.{name}"]
    monkeypatch.setattr(module, "get_active_tracer", fail)
    emit, *arguments = EMITTERS[name]
    emit(*arguments, propagate=False)
    with pytest.raises(AssertionError, match="looked for a tracer"):
        emit(*arguments)
    if name == "annotation":
        with operation(propagate=False):
            pass


class _Recording(DummyTracer):
    def __init__(self) -> None:
        super().__init__()
        self.spans: list[Any] = []

    def create_span(self, *args: Any, **kwargs: Any) -> Any:
        self.spans.append(super().create_span(*args, **kwargs))
        return self.spans[-1]


@pytest.fixture
def tracer() -> Any:
    tracer = _Recording()
    set_active_tracer(tracer)
    yield tracer
    clear_active_tracer()


def test_message(tracer: _Recording) -> None:
    emit_message("hello")
    emit_message("hello", {"a": {"b": None}})
    plain, rich = tracer.spans
    assert plain.name == "agentlightning.message"
    assert plain.attributes == {"agentlightning.message.body": "hello"}
    assert rich.attributes == {"agentlightning.message.body": "hello", "a.b": "null"}
    assert get_message_value(plain) == "hello"
    assert get_message_value(FakeSpan()) is None
    with pytest.raises(TypeError):
        get_message_value(FakeSpan({"agentlightning.message.body": 1}))


@pytest.mark.parametrize(
    "value", ["s", 3, 2.5, True, False, b"\x00\xff", None, [1, {"a": None}], {"k": [1]}, "", 0]
)
def test_objects_come_back(value: Any) -> None:
    span = emit_object(value, propagate=False)
    back = get_object_value(span)
    assert back == value
    assert type(back) is type(value)


def test_object_encoding() -> None:
    assert encode_object(3) == {"agentlightning.object.type": "int", "agentlightning.object.literal": "3"}
    assert encode_object(True) == {
        "agentlightning.object.type": "bool",
        "agentlightning.object.literal": "True",
    }
    assert encode_object(None) == {
        "agentlightning.object.type": "NoneType",
        "agentlightning.object.json": "null",
    }
    assert encode_object([1]) == {"agentlightning.object.type": "list", "agentlightning.object.json": "[1]"}
    with pytest.raises(RuntimeError):
        get_object_value(FakeSpan({"agentlightning.object.json": "{"}))
    with pytest.raises(RuntimeError):
        get_object_value(
            FakeSpan({"agentlightning.object.literal": "x", "agentlightning.object.type": "set"})
        )
    assert get_object_value(FakeSpan()) is None


def test_exception(tracer: _Recording) -> None:
    try:
        raise KeyError("gone")
    except KeyError as exc:
        emit_exception(exc, {"where": "here"})
    (span,) = tracer.spans
    assert span.name == "agentlightning.exception"
    assert span.status.status_code == "OK"
    assert span.attributes["exception.type"] == "KeyError"
    assert span.attributes["exception.message"] == "'gone'"
    assert span.attributes["exception.escaped"] is True
    assert "test_exception" in span.attributes["exception.stacktrace"]
    assert span.attributes["where"] == "here"


def test_active_tracer_is_one_per_context() -> None:
    first, second = DummyTracer(), DummyTracer()
    set_active_tracer(first)
    try:
        with pytest.raises(ValueError, match="already set"):
            set_active_tracer(second)
        assert get_active_tracer() is first
    finally:
        clear_active_tracer()
    assert get_active_tracer() is None


async def test_tasks_have_tracers_of_their_own() -> None:
    seen: list[tuple[Any, Any]] = []

    async def work() -> None:
        tracer = DummyTracer()
        set_active_tracer(tracer)
        await asyncio.sleep(0.01)
        seen.append((tracer, get_active_tracer()))

    await asyncio.gather(work(), work(), work())
    assert len(seen) == 3
    assert all(mine is active for mine, active in seen)
    assert get_active_tracer() is None


def test_operation_context() -> None:
    with operation(propagate=False, name="nm", foo={"a": [1, 2]}) as op:
        op.set_input(1, {"k": [1, 2]}, z={"q": 1})
        op.set_output([1, "a"])
        with pytest.raises(RuntimeError):
            op.span()
    assert op.span().attributes == {
        "foo.a": [1, 2],
        f"{OP}.name": "nm",
        f"{OP}.input.args.0": 1,
        f"{OP}.input.args.1.k": [1, 2],
        f"{OP}.input.z.q": 1,
        f"{OP}.output.0": 1,
        f"{OP}.output.1": "a",
    }
    for use in (lambda: op.set_input(1), lambda: op.set_output(1)):
        with pytest.raises(RuntimeError):
            use()


def test_operation_without_a_name() -> None:
    with operation(propagate=False, value=7) as op:
        pass
    span = op.span()
    assert span.name == OP
    assert span.attributes == {"value": 7}
    assert (span.status.status_code, span.status.description) == ("OK", None)
    assert span.start_time is not None
    assert span.end_time is not None
    assert span.start_time < span.end_time


@dataclass
class Thing:
    x: int = 1


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (None, {f"{OP}.output": "null"}),
        (Thing(), {f"{OP}.output": '"Thing(x=1)"'}),
        ({"a": Thing()}, {f"{OP}.output.a": '"Thing(x=1)"'}),
        ([True, False], {f"{OP}.output": [True, False]}),
        ({1: 2}, {f"{OP}.output": '{"1": 2}'}),
        ([], {}),
        ({}, {}),
    ],
)
def test_operation_outputs(output: Any, expected: dict[str, Any]) -> None:
    with operation(propagate=False) as op:
        op.set_output(output)
    assert op.span().attributes == expected


def test_operation_usage_errors() -> None:
    with pytest.raises(ValueError, match="callable"):
        operation("x")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="specify both"):
        operation(name="a", **{f"{OP}.name": "b"})


class _Operations(DummyTracer):
    """Keeps the operations that it records."""

    def __init__(self) -> None:
        super().__init__()
        self.recorded: list[Any] = []

    def operation_context(self, *args: Any, **kwargs: Any) -> Any:
        from contextlib import contextmanager

        @contextmanager
        def context() -> Any:
            recording = None
            try:
                with super(_Operations, self).operation_context(*args, **kwargs) as recording:
                    yield recording
            finally:
                if recording is not None:
                    self.recorded.append(recording.get_recorded_span())

        return context()


# Decorated while no tracer is active, as functions of a module are.
@operation
def work(first: int, /, default: str = "d", *extra: int, kwonly: bool, **rest: Any) -> dict[str, int]:
    """Works."""
    return {"sum": first + sum(extra)}


@operation(name="renamed", kind="async")
async def async_work(x: int) -> int:
    await asyncio.sleep(0)
    if x < 0:
        raise ValueError("negative")
    return x


async def test_operation_decorator() -> None:
    with pytest.raises(RuntimeError):
        work(1, kwonly=True)
    assert work.__name__ == "work"
    assert work.__doc__ == "Works."
    tracer = _Operations()
    set_active_tracer(tracer)
    try:
        assert work(1, "x", 2, 3, kwonly=True, tag="t") == {"sum": 6}
        assert await async_work(4) == 4
        with pytest.raises(ValueError, match="negative"):
            await async_work(-1)
    finally:
        clear_active_tracer()
    sync_span, async_span, failed = tracer.recorded
    assert sync_span.attributes == {
        f"{OP}.name": "work",
        f"{OP}.input.first": 1,
        f"{OP}.input.default": "x",
        f"{OP}.input.extra.0": 2,
        f"{OP}.input.extra.1": 3,
        f"{OP}.input.kwonly": True,
        f"{OP}.input.rest.tag": "t",
        f"{OP}.output.sum": 6,
    }
    assert async_span.attributes == {
        f"{OP}.name": "renamed",
        "kind": "async",
        f"{OP}.input.x": 4,
        f"{OP}.output": 4,
    }
    assert (failed.status.status_code, failed.status.description) == ("ERROR", "negative")
    assert failed.attributes["exception.type"] == "ValueError"


async def test_an_operation_can_be_linked_to() -> None:
    tracer = agl.OtelTracer(instrument=False)
    with tracer.lifespan():
        async with tracer.trace_context():
            with operation(name="answer"):
                current = trace.get_current_span().get_span_context()
                ids = {"trace_id": f"{current.trace_id:032x}", "span_id": f"{current.span_id:016x}"}
            emit_reward(0.5, attributes={**make_link_attributes(ids), **make_tag_attributes(["judge"])})
            spans = tracer.get_last_trace()
    answer, judged = spans
    links = extract_links_from_attributes(judged.attributes)
    assert query_linked_spans(spans, links) == [answer]
    assert extract_tags_from_attributes(judged.attributes) == ["judge"]
    assert get_reward_value(judged) == 0.5


def test_dummy_tracer_reads_the_clock_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    import agentlightning.tracer.dummy as dummy

    ticks: list[float] = []

    def tick() -> float:
        ticks.append(1000.0 + len(ticks))
        return ticks[-1]

    monkeypatch.setattr(dummy.time, "time", tick)
    tracer = DummyTracer()
    span = tracer.create_span("a")
    assert (span.start_time, span.end_time, len(ticks)) == (1000.0, 1000.0, 1)
    with tracer.operation_context("b") as recording, pytest.raises(ValueError, match="not ended"):
        recording.get_recorded_span()
    assert len(ticks) == 3
    assert recording.get_recorded_span().end_time == 1002.0
    with pytest.raises(NotImplementedError):
        tracer.trace_context()
