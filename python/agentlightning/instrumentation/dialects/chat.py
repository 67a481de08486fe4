"""OpenAI's `chat/completions`, with vLLM's additions: what most servers speak, and all others are read
into."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentlightning.instrumentation.dialects.base import Assembly, Dialect, choices_of, drop

_KEPT = ("id", "model", "created", "system_fingerprint", "usage", "prompt_token_ids", "prompt_filter_results")


class Chat(Dialect):
    """Requests and responses stay as they are."""

    system = "OpenAI"
    provider = "openai"
    route = "/chat/completions"

    def is_call(self, body: Mapping[str, Any]) -> bool:
        """Whether there are messages."""
        return isinstance(body.get("messages"), list)

    def extras(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Token ids and log-probs."""
        return {key: True for key in ("return_token_ids", "logprobs") if key not in body}

    def request(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The body itself."""
        return dict(body)

    def response(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """The payload itself."""
        return dict(payload)

    def assembly(self) -> Assembly:
        """Merges chunks."""
        return ChatAssembly()

    def strip(self, payload: dict[str, Any], asked: frozenset[str]) -> bool:
        """Token ids and log-probs, of a completion or a chunk."""
        changed = False
        choices = choices_of(payload)
        if "return_token_ids" in asked:
            changed |= drop(payload, "prompt_token_ids")
            for choice in choices:
                changed |= drop(choice, "token_ids")
        if "logprobs" in asked:
            for choice in choices:
                if choice.get("logprobs") is not None:
                    choice["logprobs"] = None
                    changed = True
        return changed


def choice_token_ids(choice: Mapping[str, Any]) -> list[int] | None:
    """The token ids of a choice, where the various servers put them."""
    ids = choice.get("token_ids")
    if ids is None:
        ids = (choice.get("provider_specific_fields") or {}).get("token_ids")
    return ids


class ChatAssembly(Assembly):
    """Merges the chunks of a streamed chat completion."""

    def __init__(self) -> None:
        self._response: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}

    def add(self, event: Mapping[str, Any]) -> None:
        """Merges a chunk."""
        for key in _KEPT:
            if event.get(key):
                self._response[key] = event[key]
        for part in choices_of(event):
            index = part.get("index") or 0
            choice = self._choices.setdefault(index, {"index": index, "message": {"role": "assistant"}})
            _merge_message(choice["message"], part.get("delta") or {})
            if part.get("finish_reason"):
                choice["finish_reason"] = part["finish_reason"]
            if part.get("content_filter_results"):
                choice["content_filter_results"] = part["content_filter_results"]
            ids = choice_token_ids(part)
            if ids is not None:
                choice.setdefault("token_ids", []).extend(ids)
            for key in ("content", "refusal"):
                entries = (part.get("logprobs") or {}).get(key)
                if entries:
                    choice.setdefault("logprobs", {}).setdefault(key, []).extend(entries)

    def whole(self) -> dict[str, Any]:
        """The completion so far."""
        return {**self._response, "choices": [self._choices[index] for index in sorted(self._choices)]}


def _merge_message(message: dict[str, Any], delta: Mapping[str, Any]) -> None:
    if delta.get("role"):
        message["role"] = delta["role"]
    for key in ("content", "reasoning_content", "reasoning", "refusal"):
        if isinstance(delta.get(key), str) and delta[key]:
            message[key] = (message.get(key) or "") + delta[key]
    for piece in delta.get("tool_calls") or ():
        calls = message.setdefault("tool_calls", [])
        position = piece.get("index")
        if position is None:
            position = len(calls)
        while len(calls) <= position:
            calls.append({"type": "function", "function": {"name": "", "arguments": ""}})
        call, function = calls[position], piece.get("function") or {}
        call["id"] = piece.get("id") or call.get("id")
        call["function"]["name"] += function.get("name") or ""
        call["function"]["arguments"] += function.get("arguments") or ""
