"""Google's `models/{model}:generateContent`, of the Gemini API and Vertex AI."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from agentlightning.instrumentation.dialects.base import Assembly, Dialect

_PLAIN, _STREAMED = ":generateContent", ":streamGenerateContent"
_FINISH_REASONS = {"STOP": "stop", "MAX_TOKENS": "length", "SAFETY": "content_filter"}


class Gemini(Dialect):
    """Contents become messages, candidates choices."""

    system = "Gemini"
    provider = "gcp.gemini"
    operation = "generate_content"
    route = _PLAIN

    def knows(self, path: str) -> bool:
        """Either of the two methods."""
        return path.endswith((_PLAIN, _STREAMED))

    def base_of(self, url: str) -> str:
        """What is before `/models/`."""
        return url.split("?", 1)[0].rpartition("/models/")[0]

    def is_call(self, body: Mapping[str, Any]) -> bool:
        """Whether there are contents."""
        return "contents" in body

    def is_streamed(self, path: str, body: Mapping[str, Any]) -> bool:
        """The method says so."""
        return path.endswith(_STREAMED)

    def request(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """System instruction and contents; the model's name is in the path."""
        messages: list[dict[str, Any]] = []
        system = body.get("systemInstruction") or body.get("system_instruction")
        if system:
            messages.extend(_messages({**system, "role": "system"}))
        contents = body["contents"]
        for content in contents if isinstance(contents, list) else [contents]:
            if isinstance(content, Mapping):
                messages.extend(_messages(content))
        config = body.get("generationConfig") or body.get("generation_config") or {}
        request: dict[str, Any] = {
            "model": path.rpartition("/")[2].partition(":")[0],
            "messages": messages,
            "stream": self.is_streamed(path, body),
        }
        names = {
            "temperature": "temperature",
            "topP": "top_p",
            "maxOutputTokens": "max_tokens",
            "seed": "seed",
        }
        request.update({ours: config[theirs] for theirs, ours in names.items() if theirs in config})
        tools = [
            {"type": "function", "function": _function(declaration)}
            for tool in body.get("tools") or ()
            for declaration in tool.get("functionDeclarations") or tool.get("function_declarations") or ()
        ]
        if tools:
            request["tools"] = tools
        return request

    def response(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """A choice for each candidate."""
        choices = []
        for number, candidate in enumerate(payload.get("candidates") or ()):
            said = _messages({"role": "model", "parts": (candidate.get("content") or {}).get("parts") or []})
            message = said[0] if said else {"role": "assistant", "content": None}
            reason = candidate.get("finishReason")
            reason = "tool_calls" if message.get("tool_calls") else _FINISH_REASONS.get(reason or "", reason)
            choices.append({"index": number, "message": message, "finish_reason": reason})
        response: dict[str, Any] = {
            "id": payload.get("responseId"),
            "model": payload.get("modelVersion"),
            "choices": choices,
        }
        usage = payload.get("usageMetadata")
        if usage:
            completion = (usage.get("candidatesTokenCount") or 0) + (usage.get("thoughtsTokenCount") or 0)
            response["usage"] = {
                "prompt_tokens": usage.get("promptTokenCount"),
                "completion_tokens": completion,
                "total_tokens": usage.get("totalTokenCount"),
            }
        return response

    def assembly(self) -> Assembly:
        """Joins the parts of each candidate."""
        return _Assembly()


def _function(declaration: Mapping[str, Any]) -> dict[str, Any]:
    parameters = declaration.get("parameters") or declaration.get("parametersJsonSchema")
    return {
        "name": declaration.get("name"),
        "description": declaration.get("description"),
        "parameters": parameters,
    }


def _messages(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A content's parts as messages: results of functions, which the chat route has messages for, come
    first."""
    role = "assistant" if content.get("role") == "model" else content.get("role") or "user"
    results: list[dict[str, Any]] = []
    parts: list[dict[str, Any]] = []
    own: dict[str, Any] = {"role": role, "content": None}
    for part in content.get("parts") or ():
        call = part.get("functionCall") or part.get("function_call")
        result = part.get("functionResponse") or part.get("function_response")
        data = part.get("inlineData") or part.get("inline_data")
        if call:
            arguments = json.dumps(call.get("args") or {}, ensure_ascii=False)
            function = {"name": call.get("name"), "arguments": arguments}
            made = {"id": call.get("id") or call.get("name"), "type": "function", "function": function}
            own.setdefault("tool_calls", []).append(made)
        elif result:
            text = json.dumps(result.get("response"), ensure_ascii=False)
            name = result.get("id") or result.get("name")
            results.append({"role": "tool", "tool_call_id": name, "content": text})
        elif part.get("thought"):
            own["reasoning_content"] = (own.get("reasoning_content") or "") + (part.get("text") or "")
        elif data:
            kind = data.get("mimeType") or data.get("mime_type")
            url = f"data:{kind};base64,{data.get('data')}"
            parts.append({"type": "image_url", "image_url": {"url": url}})
        elif "text" in part:
            parts.append({"type": "text", "text": part["text"]})
        else:
            parts.append({"type": "unknown", **part})
    if parts:
        is_text = all(part["type"] == "text" for part in parts)
        own["content"] = "".join(part["text"] for part in parts) if is_text else parts
    is_empty = not parts and len(own) == 2
    return results if results and is_empty else [*results, own]


class _Assembly(Assembly):
    def __init__(self) -> None:
        self._response: dict[str, Any] = {}
        self._candidates: dict[int, dict[str, Any]] = {}

    def add(self, event: Mapping[str, Any]) -> None:
        for key in ("responseId", "modelVersion", "usageMetadata"):
            if event.get(key):
                self._response[key] = event[key]
        for number, piece in enumerate(event.get("candidates") or ()):
            number = piece.get("index") or number
            candidate = self._candidates.setdefault(number, {"content": {"role": "model", "parts": []}})
            candidate["content"]["parts"].extend((piece.get("content") or {}).get("parts") or ())
            if piece.get("finishReason"):
                candidate["finishReason"] = piece["finishReason"]

    def whole(self) -> dict[str, Any]:
        candidates = [self._candidates[number] for number in sorted(self._candidates)]
        return {**self._response, "candidates": candidates}
