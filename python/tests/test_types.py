"""The models: fields, JSON, and what they refuse."""

from __future__ import annotations

import collections.abc
import json
import logging
import math
import pickle
import warnings
from typing import Literal

import pytest
from pydantic import TypeAdapter, ValidationError

from agentlightning.store.base import UNSET, Unset, is_finished, is_queuing, is_running
from agentlightning.types import (
    LLM,
    Attempt,
    AttemptedRollout,
    Attributes,
    EnqueueRolloutRequest,
    NamedResources,
    PaginatedResult,
    PromptTemplate,
    ProxyLLM,
    Resource,
    ResourcesUpdate,
    Rollout,
    RolloutConfig,
    Span,
    SpanContext,
    SpanCoreFields,
    TraceStatus,
    Triplet,
    Worker,
)
from agentlightning.types.tracer import STORED, convert_timestamp, extract_extra_fields


def rollout(**fields: object) -> Rollout:
    return Rollout.model_validate({"rollout_id": "ro-1", "input": {"q": 1}, "start_time": 1.0, **fields})


def attempt(**fields: object) -> Attempt:
    return Attempt.model_validate(
        {"rollout_id": "ro-1", "attempt_id": "at-1", "sequence_id": 1, "start_time": 1.0, **fields}
    )


def test_json_has_every_declared_key_in_order() -> None:
    assert json.loads(rollout().model_dump_json()) == {
        "rollout_id": "ro-1",
        "input": {"q": 1},
        "start_time": 1.0,
        "end_time": None,
        "mode": None,
        "resources_id": None,
        "status": "queuing",
        "config": {
            "timeout_seconds": None,
            "unresponsive_seconds": None,
            "max_attempts": 1,
            "retry_condition": [],
        },
        "metadata": None,
    }
    assert list(json.loads(attempt().model_dump_json())) == [
        "rollout_id",
        "attempt_id",
        "sequence_id",
        "start_time",
        "end_time",
        "status",
        "worker_id",
        "last_heartbeat_time",
        "metadata",
    ]
    assert list(json.loads(Worker(worker_id="w").model_dump_json())) == [
        "worker_id",
        "status",
        "heartbeat_stats",
        "last_heartbeat_time",
        "last_dequeue_time",
        "last_busy_time",
        "last_idle_time",
        "current_rollout_id",
        "current_attempt_id",
    ]
    assert Triplet(prompt=1, response=2).model_dump() == {
        "prompt": 1,
        "response": 2,
        "reward": None,
        "metadata": {},
    }
    assert EnqueueRolloutRequest(input=1).config is None


@pytest.mark.parametrize("fields", [{"max_attempts": 0}, {"retry_condition": ["queuing"]}])
def test_config_refuses(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        RolloutConfig.model_validate(fields)


def test_configs_are_not_shared() -> None:
    first, second = rollout(), rollout()
    first.config.retry_condition.append("failed")
    assert second.config.retry_condition == []


def test_attempted_rollout_gives_its_plain_rollout_and_keeps_its_json() -> None:
    attempted = AttemptedRollout(**rollout(mode="val").model_dump(), attempt=attempt())
    assert type(attempted.rollout) is Rollout
    assert attempted.rollout == rollout(mode="val")
    assert list(json.loads(attempted.model_dump_json()))[-1] == "attempt"
    assert "rollout" not in json.loads(attempted.model_dump_json())


def test_attempted_rollout_refuses_a_foreign_attempt() -> None:
    with pytest.raises(ValueError, match="rollout_id"):
        AttemptedRollout(**rollout().model_dump(), attempt=attempt(rollout_id="ro-2"))


@pytest.mark.parametrize(
    ("status", "queuing", "running", "finished"),
    [
        ("queuing", True, False, False),
        ("requeuing", True, False, False),
        ("preparing", False, True, False),
        ("running", False, True, False),
        ("failed", False, False, True),
        ("succeeded", False, False, True),
        ("cancelled", False, False, True),
    ],
)
def test_status_predicates(status: str, queuing: bool, running: bool, finished: bool) -> None:
    it = rollout(status=status)
    assert (is_queuing(it), is_running(it), is_finished(it)) == (queuing, running, finished)


def test_a_page_is_the_sequence_of_its_items() -> None:
    page = PaginatedResult[int](items=[4, 5, 6], limit=3, offset=2, total=9)
    assert isinstance(page, collections.abc.Sequence)
    assert list(page) == [4, 5, 6]
    assert len(page) == 3
    assert page[0] == 4
    assert page[1:] == [5, 6]
    assert 5 in page
    assert page.index(6) == 2


@pytest.mark.parametrize(
    ("items", "limit", "expected"),
    [
        ([], -1, "<PaginatedResult (2: of 9) empty>"),
        (["a"], 1, "<PaginatedResult (2:3 of 9) 'a'>"),
        (["a", "b"], 5, "<PaginatedResult (2:7 of 9) ['a', ...]>"),
    ],
)
def test_repr_of_a_page(items: list[str], limit: int, expected: str) -> None:
    assert repr(PaginatedResult(items=items, limit=limit, offset=2, total=9)) == expected
    assert repr(PaginatedResult[str](items=items, limit=limit, offset=2, total=9)) == expected


def test_unset_is_one_object_across_pickling() -> None:
    assert pickle.loads(pickle.dumps(UNSET)) is UNSET
    assert Unset() is UNSET
    assert repr(UNSET) == "UNSET"
    assert UNSET


# Resources


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("http://h:1/v1/", "http://h:1/rollout/r/attempt/a/v1"),
        ("http://h:1/v1", "http://h:1/rollout/r/attempt/a/v1"),
        ("http://h/x", "http://h/x/rollout/r/attempt/a"),
        ("http://h", "http://h/rollout/r/attempt/a"),
    ],
)
def test_proxy_llm_routes_by_path(endpoint: str, expected: str) -> None:
    llm = ProxyLLM(endpoint=endpoint, model="m", sampling_parameters={"temperature": 0.5}, api_key="k")
    assert llm.get_base_url("r", "a") == expected
    assert llm.get_base_url(None, None) == endpoint
    attempted = AttemptedRollout(
        **rollout(rollout_id="r").model_dump(), attempt=attempt(rollout_id="r", attempt_id="a")
    )
    plain = llm.with_attempted_rollout(attempted)
    assert type(plain) is LLM
    assert plain == LLM(endpoint=expected, model="m", sampling_parameters={"temperature": 0.5}, api_key="k")


@pytest.mark.parametrize("ids", [("r", None), (None, "a"), (1, 2)])
def test_proxy_llm_wants_both_ids(ids: tuple[object, object]) -> None:
    with pytest.raises(ValueError, match="must be strings or all be empty"):
        ProxyLLM(endpoint="http://h", model="m").get_base_url(*ids)  # type: ignore[arg-type]


def test_reading_a_proxys_endpoint_warns_and_nothing_else_does(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="agentlightning.types.resources"):
        llm = ProxyLLM(endpoint="http://h", model="m")
        llm.model_dump_json()
        repr(llm)
        llm.get_base_url("r", "a")
        pickle.loads(pickle.dumps(llm))
        assert not caplog.records
        assert llm.endpoint == "http://h"
    assert [record.message[:50] for record in caplog.records] == [
        "Accessing 'endpoint' directly on ProxyLLM is disco"
    ]


def test_prompt_template() -> None:
    assert PromptTemplate(template="Hi {name}", engine="f-string").format(name="Ann") == "Hi Ann"
    with pytest.raises(KeyError):
        PromptTemplate(template="Hi {name}", engine="f-string").format()
    with pytest.raises(NotImplementedError, match="jinja"):
        PromptTemplate(template="Hi", engine="jinja").format()
    with pytest.raises(ValidationError):
        PromptTemplate.model_validate({"template": "", "engine": "mustache"})


class Adapter(Resource):
    """A resource type of the user's own."""

    resource_type: Literal["test-adapter"] = "test-adapter"
    path: str
    rank: int = 8


class TunedLLM(LLM):
    """A subclass that has no type of its own."""

    adapter: str = ""


def test_resources_round_trip() -> None:
    resources: NamedResources = {
        "llm": LLM(endpoint="e", model="m"),
        "proxy": ProxyLLM(endpoint="e", model="m"),
        "prompt": PromptTemplate(template="t", engine="poml"),
        "mine": Adapter(path="/p"),
    }
    update = ResourcesUpdate(
        resources_id="rs-1", create_time=1.0, update_time=2.0, version=3, resources=resources
    )
    back = ResourcesUpdate.model_validate_json(update.model_dump_json())
    assert back == update
    assert [type(resource) for resource in back.resources.values()] == [
        LLM,
        ProxyLLM,
        PromptTemplate,
        Adapter,
    ]


def test_what_no_class_is_known_for_keeps_its_fields() -> None:
    read = TypeAdapter(NamedResources).validate_python(
        {
            "foreign": {"resource_type": "never-seen", "x": [1]},
            "tuned": TunedLLM(endpoint="e", model="m", adapter="a").model_dump(),
        }
    )
    assert type(read["foreign"]) is Resource
    assert read["foreign"].model_dump() == {"resource_type": "never-seen", "x": [1]}
    assert type(read["tuned"]) is LLM
    assert read["tuned"].model_dump()["adapter"] == "a"


@pytest.mark.parametrize("bad", [{}, {"resource_type": "llm"}, 3])
def test_resources_refuse(bad: object) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(NamedResources).validate_python({"x": bad})


# Spans


@pytest.mark.parametrize(
    ("given", "seconds"),
    [(None, None), (0, None), (1e12, 1e12), (1.7e18, 1.7e9), (1.7e12, 1700.0), (1.5, 1.5)],
)
def test_convert_timestamp(given: float | None, seconds: float | None) -> None:
    assert convert_timestamp(given) == seconds


def test_span_from_attributes() -> None:
    span = Span.from_attributes(attributes={"a": 1})
    assert (span.rollout_id, span.attempt_id, span.sequence_id) == ("", "", 0)
    assert span.name == "agentlightning.virtual"
    assert (len(span.trace_id), len(span.span_id)) == (32, 16)
    assert span.status == TraceStatus(status_code="OK")
    assert span.context == SpanContext(
        trace_id=span.trace_id, span_id=span.span_id, is_remote=False, trace_state={}
    )
    assert (span.parent, span.events, span.links) == (None, [], [])
    assert (span.start_time, span.end_time) == (None, None)
    child = Span.from_attributes(attributes={}, trace_id="t" * 32, parent_id="p" * 16)
    assert child.parent is not None
    assert (child.parent.trace_id, child.parent.span_id) == ("t" * 32, "p" * 16)


def test_span_from_core_fields_starts_now_unless_told() -> None:
    core = SpanCoreFields(
        name="", status=TraceStatus(status_code="ERROR"), attributes={}, start_time=None, end_time=None
    )
    span = Span.from_core_fields(core, rollout_id="r", attempt_id="a", sequence_id=4)
    assert span.start_time is not None
    assert span.start_time > 1e9
    assert span.end_time is None
    assert span.name == "agentlightning.virtual"
    assert span.status.status_code == "ERROR"
    assert span.sequence_id == 4


def test_span_keeps_extra_keys_and_wants_all_declared_ones() -> None:
    span = Span.from_attributes(attributes={}).model_dump()
    assert Span.model_validate({**span, "kind": "CLIENT"}).model_dump()["kind"] == "CLIENT"
    for key in span:
        with pytest.raises(ValidationError, match=key):
            Span.model_validate({name: value for name, value in span.items() if name != key})


@pytest.mark.parametrize("bad", [None, {"a": 1}, [None], ["a", 1], object()])
def test_attributes_refuse(bad: object) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Attributes).validate_python({"good": 1, "bad": bad})


def test_what_is_stored_may_be_any_json() -> None:
    odd = {"null": None, "map": {"a": [1, None]}, "mixed": ["1", 2], "flags": [True, 1], "nested": [[1]]}
    span = Span.from_attributes(attributes={"a": 1}).model_dump()
    place = {"attributes": odd}
    span |= place
    span |= {"events": [{"name": "e", **place, "timestamp": None}], "resource": {**place, "schema_url": ""}}
    span["links"] = [{"context": span["context"], **place}]
    with pytest.raises(ValidationError):
        Span.model_validate(span)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for read in (
            Span.model_validate(span, context=STORED),
            Span.model_validate_json(json.dumps(span), context=STORED),
        ):
            assert read.model_dump() == span
            assert json.loads(read.model_dump_json()) == span
            assert [type(flag) for flag in read.attributes["flags"]] == [bool, int]  # type: ignore[union-attr]


def test_attributes_keep_types() -> None:
    given = {"s": "x", "b": True, "i": 1, "f": 1.0, "l": [1, 2], "m": [True], "e": [], "g": [0.5, 1.0]}
    read = TypeAdapter(Attributes).validate_python(given)
    assert read == given
    assert [type(value) for value in read.values()] == [type(value) for value in given.values()]
    assert type(TypeAdapter(Attributes).validate_json('{"a": [true]}')["a"][0]) is bool
    assert read["l"] is not given["l"]
    assert TypeAdapter(Attributes).validate_python({"mixed": [1, 0.5]}) == {"mixed": [1.0, 0.5]}


def test_not_a_number_is_not_lost() -> None:
    span = Span.from_attributes(attributes={"x": math.nan, "y": math.inf})
    assert json.loads(span.model_dump_json())["attributes"] == {"x": "NaN", "y": "Infinity"}


def test_from_opentelemetry() -> None:
    from opentelemetry.sdk.resources import Resource as SdkResource
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.trace import Link as SdkLink
    from opentelemetry.trace import Status, StatusCode

    provider = TracerProvider(resource=SdkResource({"service.name": "x"}))
    tracer = provider.get_tracer("test")
    with tracer.start_as_current_span("outer") as outer:
        link = SdkLink(outer.get_span_context(), {"why": "test"})
        with tracer.start_as_current_span("inner", links=[link], attributes={"ids": [1, 2]}) as inner:
            inner.add_event("ping", {"n": 1})
            inner.set_status(Status(StatusCode.ERROR, "broken"))
    assert isinstance(inner, ReadableSpan)
    span = Span.from_opentelemetry(inner, "ro", "at", 7)
    context = inner.get_span_context()
    parent = outer.get_span_context()
    assert (span.rollout_id, span.attempt_id, span.sequence_id) == ("ro", "at", 7)
    assert span.trace_id == f"{context.trace_id:032x}"
    assert span.span_id == f"{context.span_id:016x}"
    assert span.parent_id == f"{parent.span_id:016x}"
    assert span.parent is not None
    assert span.status == TraceStatus(status_code="ERROR", description="broken")
    assert list(span.attributes["ids"]) == [1, 2]  # type: ignore[arg-type]
    assert [(event.name, event.attributes) for event in span.events] == [("ping", {"n": 1})]
    assert span.events[0].timestamp == pytest.approx(span.start_time, abs=60)
    assert [(each.context.span_id, each.attributes) for each in span.links] == [
        (span.parent_id, {"why": "test"})
    ]
    assert inner.start_time is not None
    assert span.start_time == inner.start_time / 1e9
    assert span.resource.attributes["service.name"] == "x"
    assert span.model_extra == {}
    assert Span.model_validate_json(span.model_dump_json()).span_id == span.span_id
    provider.shutdown()


def test_from_opentelemetry_without_ids() -> None:
    from opentelemetry.sdk.trace import ReadableSpan

    span = Span.from_opentelemetry(ReadableSpan("bare"), "ro", "at", 0)
    assert (span.trace_id, span.span_id, span.context) == ("0" * 32, "0" * 16, None)
    assert (span.start_time, span.end_time, span.parent_id) == (None, None, None)


def test_extra_fields_are_those_the_class_does_not_have() -> None:
    class Source:
        kind = "class attribute"

        def __init__(self) -> None:
            self._name = "excluded"
            self._kind = "hidden by the class"
            self.note = {"deep": object}
            self._count = 3

    extra = extract_extra_fields(Source(), ["name"])
    assert extra["count"] == 3
    assert set(extra) == {"count", "note"}
    assert isinstance(extra["note"]["deep"], str)
