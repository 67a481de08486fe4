"""Triplets of traces, on vectors observed of 0.3.0."""

from __future__ import annotations

from typing import Any

import pytest

import agentlightning as agl
from agentlightning.adapter.triplet import RewardMatchPolicy, TracerTraceToTriplet

LLM = "openai.chat.completion"


def span(id: str, parent: str | None, name: str, times: tuple[float, float], **attributes: Any) -> agl.Span:
    """A span with attributes whose names have `__` for dots."""
    return agl.Span.from_attributes(
        attributes={key.replace("__", "."): value for key, value in attributes.items()},
        rollout_id="r",
        attempt_id="a",
        span_id=id,
        trace_id="t",
        parent_id=parent,
        name=name,
        start_time=times[0],
        end_time=times[1],
    )


def reward(id: str, parent: str | None, value: float, at: float) -> agl.Span:
    attributes = {"agentlightning__reward__0__name": "primary", "agentlightning__reward__0__value": value}
    return span(id, parent, "agentlightning.annotation", (at, at), **attributes)


def call(id: str, parent: str | None, start: float, end: float, response: str | None = None) -> agl.Span:
    attributes = {} if response is None else {"gen_ai__response__id": response}
    return span(id, parent, LLM, (start, end), **attributes)


def found(spans: list[agl.Span], **options: Any) -> list[tuple[Any, Any]]:
    triplets = TracerTraceToTriplet(**options).adapt(spans)
    return [(triplet.metadata["response_id"], triplet.reward) for triplet in triplets]


def test_calls_made_for_a_reward() -> None:
    spans = [
        span("r", None, "root", (0, 20)),
        span(
            "rw",
            "r",
            "agentlightning.operation",
            (1, 5),
            agentlightning__operation__name="agentlightning.reward",
        ),
        call("l1", "rw", 2, 3, "1"),
        call("l2", "r", 6, 7, "2"),
        reward("an", "r", 0.5, 8),
    ]
    assert found(spans) == [("2", 0.5)]
    assert found(spans, exclude_llm_call_in_reward=False) == [("1", None), ("2", 0.5)]
    assert found(spans, reward_match="first_sibling") == [("2", 0.5)]
    assert found(spans, reward_match=RewardMatchPolicy.FIRST_SIBLING) == [("2", 0.5)]
    assert TracerTraceToTriplet().adapt(spans)[0].metadata["agent_name"] == "*"


def test_rewards_after_several_calls_go_to_the_newest_first() -> None:
    spans = [
        span("r", None, "root", (0, 20)),
        call("l1", "r", 1, 2, "1"),
        call("l2", "r", 3, 4, "2"),
        *(reward(f"a{at}", "r", value, at) for at, value in ((5, 0.1), (6, 0.2), (7, 0.3))),
    ]
    assert found(spans) == [("1", 0.2), ("2", 0.1)]


def test_agents() -> None:
    spans = [
        span("root", None, "root", (0, 20)),
        span("ag", "root", "agent", (1, 9), agent__name="A"),
        span("ag2", "ag", "agent", (2, 8), agent__name="B"),
        call("l", "ag2", 3, 4, "1"),
    ]
    assert found(spans, agent_match="B") == [("1", None)]
    assert found(spans, agent_match="A") == []


def test_what_a_triplet_holds() -> None:
    attributes = {
        "gen_ai__request__model": "m",
        "gen_ai__prompt__0__role": "user",
        "gen_ai__prompt__0__content": "hi",
        "gen_ai__completion__0__content": "there",
        "gen_ai__response__id": "x",
        "prompt_token_ids": [1, 2],
        "response_token_ids": (3,),
        "logprobs__content": '[{"token": "a", "logprob": -1.0}]',
    }
    (triplet,) = TracerTraceToTriplet().adapt([span("l", None, LLM, (1, 2), **attributes)])
    assert triplet.prompt == {
        "token_ids": [1, 2],
        "raw_content": [{"role": "user", "content": "hi"}],
        "image_urls": [],
    }
    assert triplet.response["token_ids"] == [3]
    assert triplet.response["raw_content"] == [{"content": "there"}]
    assert triplet.response["logprobs"] == [{"token": "a", "logprob": -1.0}]
    assert triplet.metadata["request"] == {"model": "m"}
    assert triplet.metadata["response"] == {"id": "x"}
    assert triplet.reward is None


def test_calls_without_token_ids() -> None:
    spans = [call("l", None, 1, 2, "1")]
    (triplet,) = TracerTraceToTriplet()(spans)
    assert (triplet.prompt["token_ids"], triplet.response["token_ids"]) == ([], [])
    assert found(spans, _skip_empty_token_spans=True) == []


def test_spans_of_opentelemetry_itself() -> None:
    from opentelemetry.sdk.trace import TracerProvider

    readable: Any = TracerProvider().get_tracer("t").start_span(LLM, attributes={"prompt_token_ids": [1]})
    readable.end()
    (triplet,) = TracerTraceToTriplet().adapt([readable])
    assert triplet.prompt["token_ids"] == [1]


def test_nothing_to_adapt() -> None:
    with pytest.raises(ValueError, match="No spans provided"):
        TracerTraceToTriplet().adapt([])
    circle = [span("a", "b", LLM, (1, 2)), span("b", "a", LLM, (1, 2))]
    with pytest.raises(ValueError, match="No root spans found in the trace"):
        TracerTraceToTriplet().adapt(circle)
    with pytest.raises(ValueError, match="llm_call_match"):
        TracerTraceToTriplet(llm_call_match="(").adapt([call("l", None, 1, 2)])


def test_adapters_of_one_s_own() -> None:
    class Names(agl.TraceAdapter[list[str]]):
        def adapt(self, source: Any, /) -> list[str]:
            return [span.name for span in source]

    assert Names()([call("l", None, 1, 2)]) == [LLM]
    with pytest.raises(NotImplementedError):
        agl.Adapter[Any, Any]()(1)


def test_a_subclass_makes_triplets_of_its_own() -> None:
    class Own(TracerTraceToTriplet):
        def span_to_triplet(self, span: agl.Span, agent_name: str) -> agl.Triplet:
            triplet = super().span_to_triplet(span, agent_name)
            triplet.metadata["mine"] = span.span_id
            return triplet

    spans = [call("l1", None, 1, 2, "1"), call("l2", None, 3, 4, "2"), reward("r", None, 0.5, 5)]
    triplets = Own().adapt(spans)
    assert [triplet.metadata["mine"] for triplet in triplets] == ["l1", "l2"]
    assert [triplet.reward for triplet in triplets] == [None, 0.5]


def test_id_lists_are_those_of_the_spans() -> None:
    ids = list(range(100))
    (triplet,) = TracerTraceToTriplet().adapt(
        [span("l", None, LLM, (1, 2), prompt_token_ids=ids, response_token_ids=(1, 2, 3, 4))]
    )
    assert triplet.prompt["token_ids"] is ids or triplet.prompt["token_ids"] == ids
    assert triplet.response["token_ids"] == [1, 2, 3, 4]


def test_groups_that_are_no_lists() -> None:
    attributes = {
        "gen_ai__prompt__0__role": "user",
        "gen_ai__prompt__0__content": '[{"type": "image_url", "image_url": {"url": "u"}}]',
        "gen_ai__prompt__prompt_filter_results": "z",
        "gen_ai__completion__1__content": "second",
        "gen_ai__request__model": "m",
        "gen_ai__request__functions__0__name": "add",
        "prompt_token_ids": ["x"],
        "agentlightning__operation__output__prompt_token_ids": [7],
        "logprobs__content": "not json",
    }
    (triplet,) = TracerTraceToTriplet().adapt([span("l", None, LLM, (1, 2), **attributes)])
    content = attributes["gen_ai__prompt__0__content"]
    assert triplet.prompt["raw_content"] == {
        "0": {"role": "user", "content": content},
        "prompt_filter_results": "z",
    }
    assert triplet.prompt["image_urls"] == ["u"]
    assert triplet.prompt["token_ids"] == [7]
    assert triplet.response["raw_content"] == {"1": {"content": "second"}}
    assert "logprobs" not in triplet.response
    assert triplet.metadata["request"] == {"model": "m", "functions": [{"name": "add"}]}
    # Where there are no other groups, what is left of an operation's output is the response.
    assert triplet.metadata["response"] == {}
    assert triplet.metadata["response_id"] is None


def test_a_call_that_is_an_operation() -> None:
    attributes = {
        "agentlightning__operation__input__messages__0__role": "user",
        "agentlightning__operation__input__messages__0__content": "hi",
        "agentlightning__operation__input__model": "m",
        "agentlightning__operation__output__id": "x",
        "agentlightning__operation__output__choices__0__message__content": "ho",
        "agentlightning__operation__output__choices__0__token_ids": (3, 4),
    }
    (triplet,) = TracerTraceToTriplet().adapt([span("w", None, LLM, (1, 2), **attributes)])
    assert triplet.prompt["raw_content"] == [{"role": "user", "content": "hi"}]
    assert triplet.response == {
        "token_ids": [3, 4],
        "raw_content": [{"message": {"content": "ho"}, "token_ids": [3, 4]}],
    }
    assert triplet.metadata["request"] == {"model": "m"}
    assert triplet.metadata["response"] == {"id": "x"}
    assert triplet.metadata["response_id"] == "x"
