"""Spans of model calls that other instrumentations have made, in the shape that ours have.

Most calls we record ourselves, as the HTTP requests that they are. What other instrumentations make of the
same calls are spans around ours, and stay what they are. Only where we have seen no request, as with a model
inside of the process, theirs becomes the record of the call.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentlightning.types import Event, Span

LLM_CALL = "openai.chat.completion"
"""The name of a model call's span."""
ORIGINAL_NAME = "agentlightning.original_name"
"""The name that the span had."""

_IS_CALL = re.compile(r"openai\.chat\.completion")
_OPERATIONS = frozenset({"chat", "text_completion", "generate_content"})
_INDEXED = re.compile(r"^llm\.(input|output)_messages\.(\d+)\.message\.(.+)$")
_TOOL_CALL = re.compile(r"^tool_calls\.(\d+)\.tool_call\.(id|function\.name|function\.arguments)$")
_PART = re.compile(r"^contents\.(\d+)\.message_content\.(text|type)$")


def normalize(span: Span, calls: Sequence[Mapping[str, Any]]) -> None:
    """Reads a span that is none of our calls; `calls` are the attributes of those of ours that were made
    inside."""
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
    read = _read(attributes, span.events)
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


def _read(
    attributes: Mapping[str, Any], events: Sequence[Event]
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The request and the response of a call in OpenAI's chat form; None if the span is that of no call."""
    if attributes.get("openinference.span.kind") == "LLM":
        return _openinference(attributes)
    if attributes.get("gen_ai.operation.name") in _OPERATIONS:
        return _genai(attributes, events)
    if "llm.request.type" in attributes and "gen_ai.completion.0.role" in attributes:
        # OpenLLMetry has our names for messages, so that the rest will do.
        return _frame(attributes, [], [])
    return None


def _frame(
    attributes: Mapping[str, Any], messages: list[Any], choices: list[dict[str, Any]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the conventions have in common, around the messages."""

    def first(*names: str) -> Any:
        return next((attributes[name] for name in names if attributes.get(name) is not None), None)

    usage = {
        "prompt_tokens": first(
            "gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens", "llm.token_count.prompt"
        ),
        "completion_tokens": first(
            "gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens", "llm.token_count.completion"
        ),
    }
    total = first("gen_ai.usage.total_tokens", "llm.usage.total_tokens", "llm.token_count.total")
    if total is None and None not in usage.values():
        total = sum(usage.values())
    request = {"messages": messages, "model": first("gen_ai.request.model", "llm.model_name")}
    response: dict[str, Any] = {
        "model": first("gen_ai.response.model", "llm.model_name"),
        "id": first("gen_ai.response.id"),
        "usage": {**usage, "total_tokens": total},
        "choices": choices,
    }
    return request, response


def _genai(
    attributes: Mapping[str, Any], events: Sequence[Event]
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """OpenTelemetry's conventions: messages as JSON text, or as events of the span before that."""
    inputs = [
        *_json(attributes.get("gen_ai.system_instructions")),
        *_json(attributes.get("gen_ai.input.messages")),
    ]
    outputs = _json(attributes.get("gen_ai.output.messages"))
    prompt = [_from_parts(message) for message in inputs]
    choices = [_choice(_from_parts(message), message, number) for number, message in enumerate(outputs)]
    for event in events:
        kind, fields = event.name, dict(event.attributes or {})
        if kind == "gen_ai.choice":
            message = _json(fields.get("message")) or [
                {"role": "assistant", "content": fields.get("content")}
            ]
            choices.append(_choice(message[0], fields, len(choices)))
        elif kind.startswith("gen_ai.") and kind.endswith(".message"):
            role = kind.split(".")[1]
            prompt.append({"role": role, "content": fields.get("content"), "tool_call_id": fields.get("id")})
    if not prompt and not choices and "gen_ai.prompt.0.role" not in attributes:
        return None
    return _frame(attributes, prompt, choices)


def _choice(message: dict[str, Any], source: Mapping[str, Any], number: int) -> dict[str, Any]:
    return {"index": number, "message": message, "finish_reason": source.get("finish_reason")}


def _from_parts(message: Any) -> dict[str, Any]:
    """A message of OpenTelemetry's, which consists of parts, or a part of the system's instructions."""
    if not isinstance(message, Mapping):
        return {"role": "user", "content": str(message)}
    if "parts" not in message:
        role = message.get("role") or "system"
        return {"role": role, "content": message.get("content")}
    read: dict[str, Any] = {"role": message.get("role"), "content": None}
    for part in message["parts"]:
        match part.get("type"):
            case "text":
                read["content"] = (read["content"] or "") + str(part.get("content"))
            case "reasoning":
                read["reasoning_content"] = str(part.get("content"))
            case "tool_call":
                arguments = part.get("arguments")
                text = arguments if isinstance(arguments, str) else json.dumps(arguments)
                function = {"name": part.get("name"), "arguments": text}
                call = {"id": part.get("id"), "type": "function", "function": function}
                read.setdefault("tool_calls", []).append(call)
            case "tool_call_response":
                result = part.get("response", part.get("result"))
                read["role"], read["tool_call_id"] = "tool", part.get("id")
                read["content"] = result if isinstance(result, str) else json.dumps(result)
            case _:
                read["content"] = (read["content"] or "") + json.dumps(part)
    return read


def _openinference(attributes: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """OpenInference's: flattened messages."""
    sides: dict[str, dict[int, dict[str, Any]]] = {"input": {}, "output": {}}
    for key, value in attributes.items():
        found = _INDEXED.match(key)
        if found is None:
            continue
        side, number, field = found.groups()
        message = sides[side].setdefault(int(number), {"role": None, "content": None})
        if field in ("role", "content", "tool_call_id"):
            message[field] = value
        elif part := _PART.match(field):
            if part.group(2) == "text":
                message["content"] = (message["content"] or "") + str(value)
        elif call := _TOOL_CALL.match(field):
            calls = message.setdefault("tool_calls", [])
            while len(calls) <= int(call.group(1)):
                calls.append({"type": "function", "function": {}})
            made, name = calls[int(call.group(1))], call.group(2)
            (made if name == "id" else made["function"])[name.rpartition(".")[2]] = value
    prompt = [sides["input"][number] for number in sorted(sides["input"])]
    said = [sides["output"][number] for number in sorted(sides["output"])]
    return _frame(attributes, prompt, [_choice(message, {}, number) for number, message in enumerate(said)])


def _json(text: Any) -> list[Any]:
    if not isinstance(text, str):
        return []
    try:
        value = json.loads(text)
    except ValueError:
        return []
    return value if isinstance(value, list) else [value]
