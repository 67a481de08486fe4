"""OpenAI's older `completions`: a prompt and its continuation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from agentlightning.instrumentation.dialects.base import Assembly, Dialect, choices_of, drop
from agentlightning.instrumentation.dialects.chat import Chat, choice_token_ids


class Completions(Dialect):
    """The prompt becomes a user's message; a prompt of token ids stays one, as JSON text."""

    system = "OpenAI"
    provider = "openai"
    operation = "text_completion"
    request_type = "completion"
    route = "/completions"

    def is_call(self, body: Mapping[str, Any]) -> bool:
        """Whether there is a prompt."""
        return "prompt" in body

    def extras(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Token ids, and the log-probs of the tokens that were taken."""
        extras: dict[str, Any] = {}
        if "return_token_ids" not in body:
            extras["return_token_ids"] = True
        if body.get("logprobs") is None:
            extras["logprobs"] = 1
        return extras

    def request(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """One message for each prompt."""
        prompt = body["prompt"]
        prompts = prompt if isinstance(prompt, list) and prompt and isinstance(prompt[0], str) else [prompt]
        return {**body, "messages": [{"role": "user", "content": _text(prompt)} for prompt in prompts]}

    def response(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """One message for each text."""
        choices = []
        for choice in choices_of(payload):
            message = {"role": "assistant", "content": choice.get("text")}
            choices.append({**choice, "message": message, "logprobs": _logprobs(choice.get("logprobs"))})
        first = choices[0] if choices else {}
        # vLLM gives the ids of a prompt with its choice.
        ids = payload.get("prompt_token_ids") or first.get("prompt_token_ids")
        return {**payload, "choices": choices, **({"prompt_token_ids": ids} if ids else {})}

    def assembly(self) -> Assembly:
        """Joins texts."""
        return _Assembly()

    def strip(self, payload: dict[str, Any], asked: frozenset[str]) -> bool:
        """Token ids and log-probs, of a completion or a chunk."""
        changed = Chat().strip(payload, asked)
        if "return_token_ids" in asked:
            for choice in choices_of(payload):
                changed |= drop(choice, "prompt_token_ids")
        return changed


def _text(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else json.dumps(prompt)


def _logprobs(logprobs: Any) -> dict[str, Any] | None:
    """The old form, lists side by side, as the entries of the chat route."""
    if not isinstance(logprobs, Mapping):
        return None
    pairs = zip(logprobs.get("tokens") or (), logprobs.get("token_logprobs") or (), strict=False)
    return {
        "content": [
            {"token": token, "logprob": logprob, "bytes": None, "top_logprobs": []}
            for token, logprob in pairs
        ]
    }


class _Assembly(Assembly):
    def __init__(self) -> None:
        self._response: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}

    def add(self, event: Mapping[str, Any]) -> None:
        for key in ("id", "model", "usage", "prompt_token_ids"):
            if event.get(key):
                self._response[key] = event[key]
        for part in choices_of(event):
            index = part.get("index") or 0
            choice = self._choices.setdefault(index, {"index": index, "text": ""})
            choice["text"] += part.get("text") or ""
            for key in ("finish_reason", "prompt_token_ids"):
                if part.get(key):
                    choice[key] = part[key]
            ids = choice_token_ids(part)
            if ids is not None:
                choice.setdefault("token_ids", []).extend(ids)
            for key in ("tokens", "token_logprobs"):
                entries = (part.get("logprobs") or {}).get(key)
                if entries:
                    choice.setdefault("logprobs", {}).setdefault(key, []).extend(entries)

    def whole(self) -> dict[str, Any]:
        return {**self._response, "choices": [self._choices[index] for index in sorted(self._choices)]}
