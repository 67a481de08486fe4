"""Spans of model calls that other instrumentations have made, in the shape that ours have.

Most calls we record ourselves, as the HTTP requests that they are. What other instrumentations make of the
same calls are spans around ours, and stay what they are. Only where we have seen no request, as with a model
inside of the process, theirs becomes the record of the call.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentlightning.types import Span

LLM_CALL = "openai.chat.completion"
"""The name of a model call's span."""
ORIGINAL_NAME = "agentlightning.original_name"
"""The name that the span had."""

_IS_CALL = re.compile(r"openai\.chat\.completion")
_OPERATIONS = frozenset({"chat", "text_completion", "generate_content"})


def normalize(span: Span, calls: Sequence[Mapping[str, Any]], answered: Container[str]) -> None:
    """Reads a span that is none of our calls.

    `calls` are the attributes of those of ours that were made inside, `answered` the ids of the responses to
    all of ours in the trace.
    """
    attributes = span.attributes
    if "gen_ai.agent.name" in attributes and "agent.name" not in attributes:
        # By this name all readers know an agent.
        span.attributes = attributes = {**attributes, "agent.name": attributes["gen_ai.agent.name"]}
    if calls:
        if attributes.get("gen_ai.operation.name") == "invoke_agent":
            _tell_agent(span, calls)
        if _IS_CALL.search(span.name):
            # Readers keep the outer span of a call that is recorded twice, so that it has to know everything.
            span.attributes = {**_same_call(attributes, calls), **attributes}
        return
    if _IS_CALL.search(span.name) or "agentlightning.operation.name" in attributes:
        return
    if attributes.get("gen_ai.response.id") in answered:
        # Of a call of ours, but written beside it, as callbacks do.
        return
    read = _read(span)
    if read is None:
        return
    from agentlightning.instrumentation.attributes import request_attributes, response_attributes

    request, response = read
    normal = {**request_attributes(request), **response_attributes(response)}
    normal["gen_ai.system"] = attributes.get("gen_ai.provider.name", "unknown")
    span.attributes = {**normal, **attributes, ORIGINAL_NAME: span.name}
    span.name = LLM_CALL


def _tell_agent(span: Span, calls: Sequence[Mapping[str, Any]]) -> None:
    """An agent's input is that of its first call, and its output that of its last, where nobody says more."""
    said = {
        "input.value": calls[0].get("gen_ai.input.messages"),
        "output.value": calls[-1].get("gen_ai.output.messages"),
    }
    missing = {key: value for key, value in said.items() if value is not None and key not in span.attributes}
    span.attributes = {**span.attributes, **missing}


def _same_call(attributes: Mapping[str, Any], calls: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    response_id = attributes.get("gen_ai.response.id")
    same = [call for call in calls if response_id is None or call.get("gen_ai.response.id") == response_id]
    return same[-1] if same else {}


def _read(span: Span) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The request and the response of a call in OpenAI's chat form; None if the span is that of no call."""
    if not _may_be_call(span.attributes):
        return None
    from agentlightning import _core

    read = json.loads(_core.call_as_chat(span.model_dump_json().encode()))
    return read if read is not None and (read[0]["messages"] or read[1]["choices"]) else None


def _may_be_call(attributes: Mapping[str, Any]) -> bool:
    """What can be seen at a glance; most spans record none."""
    return (
        attributes.get("gen_ai.operation.name") in _OPERATIONS
        or attributes.get("openinference.span.kind") == "LLM"
        or attributes.get("langsmith.span.kind") == "llm"
        or "llm.request.type" in attributes
    )
