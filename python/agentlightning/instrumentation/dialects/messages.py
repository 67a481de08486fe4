"""Anthropic's `messages`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from agentlightning.instrumentation.dialects.base import Assembly, Dialect, drop

_STOP_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_TOKEN_KEYS = ("prompt_token_ids", "token_ids", "response_token_ids")


class Messages(Dialect):
    """Blocks become what the chat route has for them: text, images, tool calls and their results,
    reasoning."""

    system = "Anthropic"
    provider = "anthropic"
    route = "/messages"

    def is_call(self, body: Mapping[str, Any]) -> bool:
        """Whether there are messages."""
        return isinstance(body.get("messages"), list)

    def extras(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Token ids and log-probs, which gateways give on this route."""
        return {key: True for key in ("return_token_ids", "logprobs") if key not in body}

    def request(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """System text and messages."""
        messages: list[dict[str, Any]] = []
        if body.get("system"):
            messages.append({"role": "system", "content": _content(body["system"])})
        for message in body["messages"]:
            if isinstance(message, Mapping):
                messages.extend(_messages(message))
        same = ("model", "temperature", "top_p", "max_tokens", "stream", "tool_choice")
        request = {key: body[key] for key in same if key in body}
        request["messages"] = messages
        if body.get("tools"):
            request["tools"] = [_tool(tool) for tool in body["tools"] if isinstance(tool, Mapping)]
        return request

    def response(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """The one message that it is."""
        response: dict[str, Any] = {"id": payload.get("id"), "model": payload.get("model"), "choices": []}
        if payload.get("content") is not None:
            said = {"role": payload.get("role") or "assistant", "content": payload["content"]}
            (message,) = _messages(said) or [{"role": "assistant", "content": None}]
            reason = payload.get("stop_reason")
            choice = {
                "index": 0,
                "message": message,
                "finish_reason": _STOP_REASONS.get(reason or "", reason),
            }
            ids = payload.get("token_ids") or (payload.get("response_token_ids") or [None])[0]
            if ids:
                choice["token_ids"] = ids
            if isinstance(payload.get("logprobs"), Mapping):
                choice["logprobs"] = payload["logprobs"]
            response["choices"] = [choice]
        if payload.get("prompt_token_ids"):
            response["prompt_token_ids"] = payload["prompt_token_ids"]
        usage = payload.get("usage")
        if usage:
            cached = {key: usage.get(f"{key}_input_tokens") or 0 for key in ("cache_read", "cache_creation")}
            prompt = (usage.get("input_tokens") or 0) + sum(cached.values())
            completion = usage.get("output_tokens") or 0
            response["usage"] = {
                "prompt_tokens": prompt,
                "completion_tokens": completion,
                "total_tokens": prompt + completion,
                "prompt_tokens_details": {"cached_tokens": cached["cache_read"]},
            }
        return response

    def assembly(self) -> Assembly:
        """Fills the blocks of the message that the first event begins."""
        return _Assembly()

    def is_last(self, event: Mapping[str, Any]) -> bool:
        """Whether the message is over."""
        return event.get("type") == "message_stop"

    def strip(self, payload: dict[str, Any], asked: frozenset[str]) -> bool:
        """Token ids and log-probs, of a message or an event."""
        names = _TOKEN_KEYS if "return_token_ids" in asked else ()
        if "logprobs" in asked:
            names = (*names, "logprobs")
        changed = drop(payload, *names)
        for key in ("message", "delta"):
            if isinstance(payload.get(key), dict):
                changed |= drop(payload[key], *names)
        return changed


def _messages(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A message's blocks as messages: results of tools, which the chat route has messages for, come first."""
    role, content = message.get("role") or "user", message.get("content")
    if not isinstance(content, list):
        return [{"role": role, "content": content}]
    results: list[dict[str, Any]] = []
    rest: list[Mapping[str, Any]] = []
    own: dict[str, Any] = {"role": role, "content": None}
    for block in content:
        if not isinstance(block, Mapping):
            continue
        match block.get("type"):
            case "tool_result":
                text = _content(block.get("content"))
                results.append({"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": text})
            case "tool_use" | "server_tool_use":
                arguments = json.dumps(block.get("input") or {}, ensure_ascii=False)
                function = {"name": block.get("name"), "arguments": arguments}
                call = {"id": block.get("id"), "type": "function", "function": function}
                own.setdefault("tool_calls", []).append(call)
            case "thinking":
                own["reasoning_content"] = (own.get("reasoning_content") or "") + (
                    block.get("thinking") or ""
                )
            case _:
                rest.append(block)
    if rest:
        own["content"] = _content(rest)
    is_empty = not rest and len(own) == 2
    return results if results and is_empty else [*results, own]


def _content(content: Any) -> Any:
    """Text as text; blocks of other kinds as parts."""
    if not isinstance(content, list):
        return content
    parts = [_part(block) for block in content if isinstance(block, Mapping)]
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] or "" for part in parts)
    return parts


def _part(block: Mapping[str, Any]) -> dict[str, Any]:
    if block.get("type") == "text":
        return {"type": "text", "text": block.get("text")}
    source = block.get("source")
    if block.get("type") == "image" and isinstance(source, Mapping):
        url = source.get("url") or f"data:{source.get('media_type')};base64,{source.get('data')}"
        return {"type": "image_url", "image_url": {"url": url}}
    return {"type": "unknown", **block}


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    function = {
        "name": tool.get("name"),
        "description": tool.get("description"),
        "parameters": tool.get("input_schema"),
    }
    return {"type": "function", "function": function}


class _Assembly(Assembly):
    def __init__(self) -> None:
        self._message: dict[str, Any] = {}
        self._blocks: dict[int, dict[str, Any]] = {}
        self._inputs: dict[int, str] = {}

    def add(self, event: Mapping[str, Any]) -> None:
        for key in (*_TOKEN_KEYS, "logprobs"):
            if event.get(key):
                self._message[key] = event[key]
        index = event.get("index") or 0
        delta = event.get("delta") or {}
        match event.get("type"):
            case "message_start":
                self._message.update(event.get("message") or {})
            case "content_block_start":
                self._blocks[index] = dict(event.get("content_block") or {})
            case "content_block_delta":
                block = self._blocks.setdefault(index, {"type": "text"})
                if delta.get("type") == "input_json_delta":
                    self._inputs[index] = self._inputs.get(index, "") + (delta.get("partial_json") or "")
                for key in ("text", "thinking", "signature"):
                    if key in delta:
                        block[key] = (block.get(key) or "") + delta[key]
            case "message_delta":
                self._message.update({key: value for key, value in delta.items() if value is not None})
                if event.get("usage"):
                    self._message["usage"] = {**(self._message.get("usage") or {}), **event["usage"]}

    def whole(self) -> dict[str, Any]:
        blocks = []
        for index in sorted(self._blocks):
            block = self._blocks[index]
            if index in self._inputs:
                try:
                    block = {**block, "input": json.loads(self._inputs[index])}
                except ValueError:
                    # Cut off.
                    block = {**block, "input": {"partial_json": self._inputs[index]}}
            blocks.append(block)
        return {**self._message, "content": blocks} if self._message or blocks else {}
