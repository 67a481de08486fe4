"""The adapters of 0.3 beside that of triplets, on vectors observed of 0.3.0, and ours for any trace."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.adapter import (
    AutoTraceAdapter,
    LangChainAdapter,
    LlmProxyTraceToTriplet,
    MissingTokenIdsError,
    TracerTraceToTriplet,
    TraceToMessages,
    TraceTree,
    Transition,
)

LLM = "openai.chat.completion"


def span(
    id: str,
    parent: str | None,
    name: str,
    times: tuple[float | None, float | None] = (1, 2),
    place: int = 0,
    **attributes: Any,
) -> agl.Span:
    """A span with attributes whose names have `__` for dots."""
    made = agl.Span.from_attributes(
        attributes={key.replace("__", "."): value for key, value in attributes.items()},
        rollout_id="r",
        attempt_id="a",
        sequence_id=place,
        span_id=id,
        trace_id="t",
        parent_id=parent,
        name=name,
        start_time=times[0],
        end_time=times[1],
    )
    made.start_time, made.end_time = times
    return made


def reward(id: str, place: int, value: float, parent: str | None = None) -> agl.Span:
    attributes = {"agentlightning__reward__0__name": "primary", "agentlightning__reward__0__value": value}
    return span(id, parent, "agentlightning.annotation", (place, place), place, **attributes)


# ----------------------------------------------------------------------------------------------------
# Trees


def test_a_tree_of_spans_in_any_order() -> None:
    tree = TraceTree.from_spans(
        [
            span("child", "root", LLM, (2, 3)),
            span("root", None, "root", (0, 9)),
            span("ag", "root", "agent", (4, 5), agent__name="A"),
        ]
    )
    assert tree.names_tuple() == ("root", [(LLM, []), ("agent [A]", [])])
    assert [node.id for node in tree.traverse()] == ["root", "child", "ag"]
    assert (tree.start_time, tree.end_time) == (0, 9)
    found = tree.find_id("ag")
    assert found is not None
    assert found.agent_name() == "A"
    assert tree.find_id("none") is None
    found.add_child(TraceTree("more", span("more", "ag", "x")))
    told = tree.to_json()
    assert told["children"][1]["children"][0]["id"] == "more"
    assert told["span"]["name"] == "root"
    with pytest.raises(ValueError, match="No spans provided"):
        TraceTree.from_spans([])
    with pytest.raises(ValueError, match="No root spans found in the trace"):
        TraceTree.from_spans([span("a", "b", "x"), span("b", "a", "x")])


def test_lost_parents_and_several_roots() -> None:
    lone = TraceTree.from_spans([span("c", "gone", LLM, (2, 3))])
    assert (lone.id, lone.span.name) == ("gone", "agentlightning.virtual")
    tree = TraceTree.from_spans([span("l1", "g1", LLM, (1, 2)), span("l2", "g2", LLM, (4, 7))])
    assert tree.id == tree.span.name == "virtual-root"
    assert [child.span.name for child in tree.children] == ["agentlightning.virtual"] * 2
    assert (tree.start_time, tree.end_time) == (1, 7), "to the last end, not that of the last root"


def test_repair_moves_spans_of_a_wrapper_under_what_encloses_them() -> None:
    tree = TraceTree.from_spans(
        [
            span("root", None, "root", (0, 20)),
            span("p", "root", "p", (1, 9)),
            span("pp", "p", "pp", (2, 8)),
            span("q", "root", LLM, (3, 4)),
        ]
    )
    tree.repair_hierarchy()
    assert tree.names_tuple() == ("root", [("p", [("pp", [(LLM, [])])])])


def test_a_tree_s_calls_rewards_and_triplets() -> None:
    tree = TraceTree.from_spans(
        [
            span("r", None, "root", (0, 20)),
            span(
                "l1", "r", LLM, (1, 2), gen_ai__response__id="1", prompt_token_ids=[1], response_token_ids=[2]
            ),
            span("l2", "r", LLM, (3, 4), gen_ai__response__id="2"),
            *(reward(f"a{at}", at, value, "r") for at, value in ((5, 0.1), (6, 0.2), (7, 0.3))),
        ]
    )
    assert [(node.id, agent) for node, agent in tree.find_llm_calls()] == [("l1", "*"), ("l2", "*")]
    assert tree.find_llm_calls(agent_match="A") == []
    assert tree.match_rewards() == {"l1": 0.2, "l2": 0.1}
    assert tree.match_rewards("first_sibling") == {"l1": 0.2, "l2": 0.1}
    assert [triplet.reward for triplet in tree.to_trajectory(final_reward=0.9)] == [0.2, 0.9]
    assert len(tree.to_trajectory(_skip_empty_token_spans=True)) == 1
    with pytest.raises(ValueError, match="llm_call_match"):
        tree.to_trajectory(llm_call_match="(")


def test_nested_calls_count_once_unless_told() -> None:
    spans = [
        span("o", None, LLM, (1, 9)),
        span("i", "o", LLM, (2, 3)),
        span("i2", "o", LLM, (4, 5), gen_ai__response__id="z"),
    ]
    tree = TraceTree.from_spans(spans)
    assert [node.id for node, _ in tree.find_llm_calls()] == ["o", "i2"]
    assert len(tree.to_trajectory(dedup_llm_call=False)) == 3


def test_images_of_a_prompt() -> None:
    tree = TraceTree("x", span("x", None, LLM))
    part = {"type": "image_url", "image_url": {"url": "u"}}
    assert tree.extract_prompt_image_urls([{"content": [part]}, {"content": "not json"}, {}]) == ["u"]
    assert tree.extract_prompt_image_urls({"10": {"content": [part]}, "2": {"content": "[]"}}) == ["u"]
    assert tree.extract_prompt_image_urls({"role": "user", "content": [part]}) == ["u"]
    assert tree.extract_prompt_image_urls(3) == []


def test_a_tree_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spans = [span("r", None, "root", (0, 9)), span("m", "r", "mid", (1, 8)), span("l", "m", LLM, (2, 3))]
    dot = TraceTree.from_spans(spans).to_dot(interested_span_match="root|openai")
    assert 'n0 [label="root"]' in dot
    assert "n0 -> n2" in dot
    assert "mid" not in dot
    # Whether or not Graphviz is here, something that takes its arguments is.
    script = tmp_path / "dot"
    script.write_text('#!/bin/sh\ncat > "$3"\n', encoding="utf-8")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    tree = TracerTraceToTriplet().visualize(spans, filename=str(tmp_path / "tree"))
    assert tree.id == "r"
    assert "digraph" in (tmp_path / "tree.png").read_text(encoding="utf-8")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match="Graphviz"):
        tree.visualize("x")


def test_a_deep_trace() -> None:
    spans = [span(str(depth), str(depth - 1) if depth else None, "x", (0, 1)) for depth in range(5000)]
    tree = TraceTree.from_spans(spans)
    tree.repair_hierarchy()
    assert len(tree.traverse()) == 5000


# ----------------------------------------------------------------------------------------------------
# Transitions


def test_transitions_of_triplets() -> None:
    triplet = agl.Triplet(
        prompt={"token_ids": [1, 2]},
        response={"token_ids": [3]},
        reward=0.5,
        metadata={"response_id": "x", "agent_name": "a"},
    )
    transition = Transition.from_triplet(triplet)
    assert (transition.state, transition.action, transition.response_id) == ([1, 2], [3], "x")
    assert (transition.agent_name, transition.reward) == ("a", 0.5)
    for part in ("prompt", "response"):
        with pytest.raises(MissingTokenIdsError, match=f"the call x has no token ids of its {part}"):
            Transition.from_triplet(triplet.model_copy(update={part: {"token_ids": []}}))


# ----------------------------------------------------------------------------------------------------
# What a proxy recorded


def raw(id: str, place: int, response: str, provider: str = "hosted_vllm", **more: Any) -> agl.Span:
    attributes = {
        f"llm__{provider}__id": response,
        f"llm__{provider}__prompt_token_ids": "[1, 2, 3]",
        f"llm__{provider}__choices": "[{'content': \"it's\", 'token_ids': [4, 5], 'stop': None}]",
    }
    return span(id, None, "raw_gen_ai_request", (place, place), place, **attributes, **more)


def test_what_a_proxy_recorded() -> None:
    adapter = LlmProxyTraceToTriplet()
    assert adapter.adapt([]) == []
    spans = [raw(f"s{place}", place, f"cmpl-{place}") for place in (4, 2, 1, 3)]
    told = [triplet.model_dump() for triplet in adapter.adapt(spans)]
    assert told == [
        {
            "prompt": {"token_ids": [1, 2, 3]},
            "response": {"token_ids": [4, 5]},
            "reward": None,
            "metadata": {"response_id": f"cmpl-{place}"},
        }
        for place in (1, 2, 3, 4)
    ]
    assert adapter.adapt([raw("a", 1, "x"), raw("b", 2, "x")])[0].metadata == {"response_id": "x"}
    assert len(adapter.adapt([raw("a", 1, "x"), raw("b", 2, "x")])) == 1
    ids = {"prompt_token_ids": [1], "response_token_ids": [2]}
    assert len(adapter.adapt([span("l", None, "litellm_request", place=1, **ids)])) == 1
    assert len(adapter.adapt([raw("o", 1, "x", provider="openai")])) == 1, "0.3 knew hosted_vllm alone"


def test_a_proxy_s_rewards_go_to_calls_before_them(caplog: pytest.LogCaptureFixture) -> None:
    def rewards(*spans: agl.Span) -> list[float | None]:
        return [triplet.reward for triplet in LlmProxyTraceToTriplet().adapt(spans)]

    one, two = raw("a", 1, "1"), raw("b", 2, "2")
    assert rewards(one, two, reward("r", 3, 0.0)) == [None, 0.0]
    assert rewards(one, two, reward("r", 2, 0.5)) == [0.5, None], "not to one with the same place"
    assert rewards(one, two, reward("r", 3, 0.1), reward("s", 4, 0.2)) == [0.2, 0.1]
    assert rewards(one, reward("r", 1, 0.5)) == [None]
    assert "no call came before the reward of span r" in caplog.text
    assert rewards(one, reward("nan", 2, float("nan"))) == [None]
    assert "the reward of span nan counts as none: nan is no finite number" in caplog.text
    late = raw("c", 2, "3")
    late.start_time = None
    assert len(LlmProxyTraceToTriplet().adapt([late, two])) == 2, "no time raises"


def test_a_proxy_adapter_s_hooks_are_called() -> None:
    class Own(LlmProxyTraceToTriplet):
        def _extract_tokens_from_raw(self, attributes: dict[str, Any]) -> tuple[list[int], list[int]]:
            return [7], [8]

        def _maybe_reward_value(self, span: agl.Span) -> float | None:
            return 1.0 if span.name == "verdict" else None

    (triplet,) = Own().adapt([raw("a", 1, "x"), span("v", None, "verdict", place=2)])
    assert (triplet.prompt, triplet.response, triplet.reward) == ({"token_ids": [7]}, {"token_ids": [8]}, 1.0)
    assert Own()._literal_eval_maybe("{'a': (1, None)}") == {"a": [1, None]}
    assert Own()._literal_eval_maybe("words") == "words"


# ----------------------------------------------------------------------------------------------------
# Messages


def test_messages_of_a_call() -> None:
    adapter = TraceToMessages()
    assert adapter.adapt([]) == []
    one = {
        "gen_ai__prompt__0__role": "user",
        "gen_ai__completion__0__role": "assistant",
        "gen_ai__completion__0__content": "x",
        "gen_ai__prompt__prompt_filter_results": "z",
    }
    assert adapter.adapt([span("l", None, LLM, **one)]) == [
        {"messages": [{"content": "", "role": "user"}, {"role": "assistant", "content": "x"}], "tools": None}
    ]
    gap = {"gen_ai__prompt__3__role": "user", "gen_ai__prompt__3__content": "hi"}
    assert adapter.adapt([span("l", None, LLM, **gap)])[0]["messages"] == [{"content": "hi", "role": "user"}]
    only = span("l", None, LLM, gen_ai__request__model="m")
    assert adapter.adapt([only]) == [{"messages": [], "tools": None}]
    silent = span("l", None, LLM, gen_ai__completion__0__role="assistant")
    assert adapter.adapt([silent])[0]["messages"] == [{"role": "assistant", "content": None}]
    assert adapter.adapt([span("x", None, "other", a=1)]) == []


def test_messages_with_tools() -> None:
    call = span(
        "l",
        None,
        LLM,
        gen_ai__prompt__0__role="assistant",
        gen_ai__prompt__0__content="discarded",
        gen_ai__prompt__0__tool_calls__0__id="c0",
        gen_ai__prompt__0__tool_calls__0__name="add",
        gen_ai__prompt__0__tool_calls__0__arguments="{}",
        gen_ai__prompt__1__role="tool",
        gen_ai__prompt__1__content="3",
        gen_ai__prompt__1__tool_call_id="c0",
        gen_ai__completion__0__role="assistant",
        gen_ai__request__functions__0__name="add",
        gen_ai__request__functions__0__parameters='{"type": "object"}',
    )
    tool = span(
        "t",
        "l",
        "tool_call.add",
        tool__name="add",
        tool__parameters='{"a": 1}',
        tool__call__id="c1",
        tool__call__type="function",
    )
    function = {"name": "add", "arguments": "{}"}
    assert TraceToMessages().adapt([tool, call]) == [
        {
            "messages": [
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"id": "c0", "type": "function", "function": function}],
                },
                {"content": "3", "role": "tool", "tool_call_id": "c0"},
                {
                    "content": None,
                    "role": "assistant",
                    "tool_calls": [
                        {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
                    ],
                },
            ],
            "tools": [
                {
                    "type": "function",
                    "function": {"name": "add", "description": "", "parameters": {"type": "object"}},
                }
            ],
        }
    ]
    nameless = span("t", "l", "tool_call.add", tool__name="add")
    with pytest.raises(KeyError, match=r"tool\.call\.id"):
        TraceToMessages().adapt([call, nameless])


def test_messages_that_are_none() -> None:
    with pytest.raises(KeyError, match="role"):
        TraceToMessages().adapt([span("l", None, LLM, gen_ai__prompt__0__content="x")])
    with pytest.raises(ValueError, match=r"gen_ai\.prompt of span l has to be a list"):
        TraceToMessages().adapt([span("l", None, LLM, gen_ai__prompt__results="x")])
    with pytest.raises(ValueError, match=r"gen_ai\.request of span l has to be no list"):
        TraceToMessages().adapt([span("l", None, LLM, gen_ai__request__0__x="x")])
    with pytest.raises(ValueError, match="poet"):
        TraceToMessages().adapt([span("l", None, LLM, gen_ai__prompt__0__role="poet")])


# ----------------------------------------------------------------------------------------------------
# Any trace


def chat(id: str, parent: str | None, place: int, **more: Any) -> agl.Span:
    attributes = {
        "gen_ai__prompt__0__role": "user",
        "gen_ai__prompt__0__content": "hi",
        "gen_ai__completion__0__role": "assistant",
        "gen_ai__completion__0__content": "ho",
        "gen_ai__response__id": id,
    }
    return span(id, parent, LLM, (place, place + 1), place, **attributes, **more)


def test_the_adapter_of_a_framework_is_chosen_and_said(caplog: pytest.LogCaptureFixture) -> None:
    spans = [
        span("c", None, "chain.chain", (0, 9), 9, langchain__chain__type="RunnableSequence"),
        chat("1", "c", 1),
        span("g", None, "step", (0, 9), 8, recipient_agent_type="critic"),
        chat("2", "g", 2),
        reward("r", 10, 0.5),
    ]
    adapter = AutoTraceAdapter()
    with caplog.at_level(logging.INFO, logger="agentlightning"):
        triplets = adapter.adapt(spans)
    agents = [triplet.metadata["agent_name"] for triplet in triplets]
    assert agents == ["RunnableSequence", "critic"], "a trace of two frameworks is read whole"
    assert [triplet.reward for triplet in triplets] == [None, 0.5]
    assert isinstance(adapter.chosen, LangChainAdapter)
    assert "LangChainAdapter reads the trace of 5 spans (lang_chain 1, auto_gen 1" in caplog.text
    assert [t.metadata["agent_name"] for t in LangChainAdapter(agents=["re:^crit"]).adapt(spans)] == [
        "critic"
    ]
    with pytest.raises(ValueError, match=r"agents\.include"):
        AutoTraceAdapter(agents=["re:("]).adapt(spans)


def test_an_adapter_of_one_s_own_takes_a_framework_over() -> None:
    class Mine(LangChainAdapter):
        def adapt(self, source: Any, /) -> list[agl.Triplet]:
            return super().adapt(source)[:1]

    adapter = AutoTraceAdapter()
    adapter.register(Mine)
    spans = [
        span("c", None, "chain", (0, 9), 9, langchain__chain__type="X"),
        chat("1", "c", 1),
        chat("2", "c", 2),
    ]
    assert len(adapter.adapt(spans)) == 1
    assert type(adapter.chosen) is Mine


def test_anything_with_a_prompt_and_a_response() -> None:
    adapter = AutoTraceAdapter()
    (triplet,) = adapter.adapt([span("x", None, "step", place=1, input="q", output="a")])
    assert triplet.prompt["raw_content"] == [{"role": "user", "content": "q"}]
    assert type(adapter.chosen).__name__ == "GenericAdapter"
    assert adapter.adapt([]) == []
