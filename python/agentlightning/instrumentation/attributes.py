"""The attributes of a model call's span, from its request and response in OpenAI's chat form.

They are those of 0.3 (`gen_ai.prompt.0.content`, …, which all its readers know) and those of OpenTelemetry's
GenAI conventions since (`gen_ai.input.messages`, …), with what neither has a name for beside them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from agentlightning import _core
from agentlightning._native import encode
from agentlightning.instrumentation.dialects.chat import choice_token_ids


def as_json(value: Any) -> bytes:
    """What has come as JSON, as JSON again."""
    try:
        return json.dumps(value, allow_nan=False).encode()
    except (TypeError, ValueError):
        # Not quite JSON: numbers that are none, what an SDK has put in by hand.
        return encode(value)


# What `chat_attributes` says of a request, even of none.
_OF_REQUESTS = ("gen_ai.system", "gen_ai.request.type", "gen_ai.request.streaming")


def request_attributes(request: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of a call when it begins."""
    attributes: dict[str, Any] = json.loads(_core.chat_attributes(as_json(request), b"{}"))
    messages = _list(request.get("messages"))
    asked = [_parted(message) for message in messages if message.get("role") not in ("system", "developer")]
    if asked:
        attributes["gen_ai.input.messages"] = _text(asked)
    system = [
        part
        for message in messages
        if message.get("role") in ("system", "developer")
        for part in _parts(message)
    ]
    if system:
        attributes["gen_ai.system_instructions"] = _text(system)
    if request.get("tools"):
        attributes["gen_ai.tool.definitions"] = _text(
            [{"type": tool.get("type"), **(tool.get("function") or {})} for tool in _list(request["tools"])]
        )
    for ours, theirs in (("n", "choice.count"), ("stop", "stop_sequences")):
        value = request.get(ours)
        if value is not None and value != 1:
            attributes[f"gen_ai.request.{theirs}"] = [value] if isinstance(value, str) else value
    if request.get("previous_response_id"):
        attributes["gen_ai.request.previous_response_id"] = request["previous_response_id"]
    for number, message in enumerate(messages):
        if message.get("reasoning_content"):
            attributes[f"gen_ai.prompt.{number}.reasoning_content"] = message["reasoning_content"]
    return attributes


def response_attributes(response: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of a call when it has been answered."""
    attributes: dict[str, Any] = json.loads(_core.chat_attributes(b"{}", as_json(response)))
    for key in _OF_REQUESTS:
        attributes.pop(key, None)
    filtered = response.get("prompt_filter_results")
    if filtered:
        attributes["gen_ai.prompt.prompt_filter_results"] = json.dumps(filtered)
    choices = _list(response.get("choices"))
    for choice in choices:
        attributes.update(_choice_attributes(choice))
    if choices:
        attributes["gen_ai.output.messages"] = _text(
            [
                {**_parted(choice.get("message") or {}), "finish_reason": choice.get("finish_reason")}
                for choice in choices
            ]
        )
        reasons = [str(choice["finish_reason"]) for choice in choices if choice.get("finish_reason")]
        if reasons:
            attributes["gen_ai.response.finish_reasons"] = reasons
    attributes.update(_usage_attributes(response, attributes))
    return attributes


def _usage_attributes(response: Mapping[str, Any], attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Token counts under both names; counted where the server gave ids and no counts, as in most streams."""
    usage = dict(response.get("usage") or {})
    prompt_ids, completion_ids = attributes.get("prompt_token_ids"), list(_all_token_ids(response))
    if usage.get("completion_tokens") is None and prompt_ids and completion_ids:
        usage["prompt_tokens"], usage["completion_tokens"] = len(prompt_ids), len(completion_ids)
        usage["total_tokens"] = usage["prompt_tokens"] + usage["completion_tokens"]
    details = usage.get("prompt_tokens_details") or {}
    reasoning = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens")
    values = {
        "prompt_tokens": usage.get("prompt_tokens"),
        "completion_tokens": usage.get("completion_tokens"),
        "total_tokens": usage.get("total_tokens"),
        "input_tokens": usage.get("prompt_tokens"),
        "output_tokens": usage.get("completion_tokens"),
        "cache_read.input_tokens": details.get("cached_tokens") or None,
        "reasoning.output_tokens": reasoning or None,
    }
    return {f"gen_ai.usage.{name}": value for name, value in values.items() if value is not None}


def _all_token_ids(response: Mapping[str, Any]) -> Iterator[int]:
    for choice in _list(response.get("choices")):
        yield from choice_token_ids(choice) or ()


def _choice_attributes(choice: Mapping[str, Any]) -> dict[str, Any]:
    index = choice.get("index") or 0
    prefix = f"gen_ai.completion.{index}"
    message = choice.get("message") or {}
    attributes: dict[str, Any] = {}
    if choice.get("content_filter_results"):
        attributes[f"{prefix}.content_filter_results"] = json.dumps(choice["content_filter_results"])
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    if reasoning:
        attributes[f"{prefix}.reasoning_content"] = (
            reasoning if isinstance(reasoning, str) else _text(reasoning)
        )
    for number, call in enumerate(_list(message.get("tool_calls"))):
        function = call.get("function") or {}
        for key, value in (
            ("id", call.get("id")),
            *((key, function.get(key)) for key in ("name", "arguments")),
        ):
            if value is not None:
                attributes[f"{prefix}.tool_calls.{number}.{key}"] = value
    if index == 0:
        return attributes
    # The first choice has names that all readers know; further ones carry their number.
    token_ids = choice_token_ids(choice)
    if token_ids is not None:
        attributes[f"response_token_ids.{index}"] = token_ids
    for key in ("content", "refusal"):
        entries = (choice.get("logprobs") or {}).get(key)
        if entries is not None:
            attributes[f"logprobs.{key}.{index}"] = json.dumps(entries)
    return attributes


# OpenTelemetry's messages


def _parted(message: Mapping[str, Any]) -> dict[str, Any]:
    return {"role": message.get("role"), "parts": _parts(message)}


def _parts(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    content = message.get("content")
    parts: list[Any] = []
    if message.get("role") == "tool":
        return [{"type": "tool_call_response", "id": message.get("tool_call_id"), "response": content}]
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    if reasoning:
        parts.append({"type": "reasoning", "content": reasoning})
    if isinstance(content, list):
        for part in content:
            is_text = isinstance(part, Mapping) and part.get("type") == "text"
            parts.append({"type": "text", "content": part.get("text")} if is_text else part)
    elif content is not None:
        parts.append({"type": "text", "content": content})
    for call in _list(message.get("tool_calls")):
        function = call.get("function") or {}
        parts.append(
            {
                "type": "tool_call",
                "id": call.get("id"),
                "name": function.get("name"),
                "arguments": _arguments(function.get("arguments")),
            }
        )
    return parts


def _arguments(arguments: Any) -> Any:
    """A tool call's arguments as what they are, unless they are no JSON."""
    try:
        return json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        return arguments


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _list(value: Any) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []
