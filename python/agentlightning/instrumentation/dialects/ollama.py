"""Ollama's own `api/chat`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from agentlightning.instrumentation.dialects.base import Assembly, Dialect


class Ollama(Dialect):
    """Close to the chat route: one message, arguments of tools as objects, streams of JSON lines."""

    system = "Ollama"
    provider = "ollama"
    route = "/api/chat"

    def is_call(self, body: Mapping[str, Any]) -> bool:
        """Whether there are messages."""
        return isinstance(body.get("messages"), list)

    def is_streamed(self, path: str, body: Mapping[str, Any]) -> bool:
        """It streams unless told not to."""
        return body.get("stream") is not False

    def request(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Messages and options."""
        options = body.get("options") or {}
        names = {"temperature": "temperature", "top_p": "top_p", "seed": "seed", "num_predict": "max_tokens"}
        return {
            "model": body.get("model"),
            "messages": [_message(message) for message in body["messages"] if isinstance(message, Mapping)],
            "stream": self.is_streamed(path, body),
            **({"tools": body["tools"]} if body.get("tools") else {}),
            **{ours: options[theirs] for theirs, ours in names.items() if theirs in options},
        }

    def response(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """The one message that it is. Ollama gives its responses no ids."""
        if not payload.get("message"):
            return {"choices": []}
        message = _message(payload["message"])
        reason = "tool_calls" if message.get("tool_calls") else payload.get("done_reason")
        prompt, completion = payload.get("prompt_eval_count"), payload.get("eval_count")
        response: dict[str, Any] = {
            "model": payload.get("model"),
            "choices": [{"index": 0, "message": message, "finish_reason": reason}],
        }
        if prompt is not None or completion is not None:
            total = (prompt or 0) + (completion or 0)
            response["usage"] = {
                "prompt_tokens": prompt,
                "completion_tokens": completion,
                "total_tokens": total,
            }
        return response

    def assembly(self) -> Assembly:
        """Joins the messages of the lines."""
        return _Assembly()


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    read: dict[str, Any] = {"role": message.get("role"), "content": message.get("content")}
    if message.get("thinking"):
        read["reasoning_content"] = message["thinking"]
    for number, call in enumerate(message.get("tool_calls") or ()):
        function = call.get("function") or {}
        arguments = json.dumps(function.get("arguments") or {}, ensure_ascii=False)
        made = {"id": f"call_{number}", "type": "function"}
        named = {"name": function.get("name"), "arguments": arguments}
        read.setdefault("tool_calls", []).append({**made, "function": named})
    return read


class _Assembly(Assembly):
    def __init__(self) -> None:
        self._response: dict[str, Any] = {}
        self._message: dict[str, Any] = {}

    def add(self, event: Mapping[str, Any]) -> None:
        piece = event.get("message") or {}
        self._response.update({key: value for key, value in event.items() if key != "message"})
        self._message.setdefault("role", piece.get("role") or "assistant")
        for key in ("content", "thinking"):
            if piece.get(key):
                self._message[key] = self._message.get(key, "") + piece[key]
        if piece.get("tool_calls"):
            self._message.setdefault("tool_calls", []).extend(piece["tool_calls"])

    def whole(self) -> dict[str, Any]:
        return {**self._response, "message": self._message} if self._message else {}
