"""OpenAI's `responses`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from agentlightning.instrumentation.dialects.base import Assembly, Dialect, drop

_LOGPROBS = "message.output_text.logprobs"
_TOKEN_KEYS = ("prompt_token_ids", "token_ids", "response_token_ids", "input_messages", "output_messages")


class Responses(Dialect):
    """Input items become messages, output items one message."""

    system = "OpenAI"
    provider = "openai"
    has_memory = True
    route = "/responses"

    def is_call(self, body: Mapping[str, Any]) -> bool:
        """Whether there is something to respond to."""
        return "input" in body or "prompt" in body

    def extras(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Token ids, in vLLM's ways, and log-probs."""
        extras: dict[str, Any] = {
            key: True for key in ("return_token_ids", "enable_response_messages") if body.get(key) is None
        }
        include = body.get("include") or []
        if _LOGPROBS not in include:
            extras["include"] = [*include, _LOGPROBS]
        return extras

    def request(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Instructions and input items as messages; `previous_response_id` stays for whoever knows that
        response."""
        messages: list[dict[str, Any]] = []
        if body.get("instructions"):
            messages.append({"role": "system", "content": body["instructions"]})
        items = body.get("input") or []
        for item in [{"role": "user", "content": items}] if isinstance(items, str) else items:
            if isinstance(item, Mapping):
                _append(messages, item)
        request = {key: body[key] for key in _SAME if key in body}
        request["messages"] = messages
        if body.get("tools"):
            request["tools"] = [_tool(tool) for tool in body["tools"] if isinstance(tool, Mapping)]
        if body.get("max_output_tokens") is not None:
            request["max_tokens"] = body["max_output_tokens"]
        return request

    def response(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """The output items as the message of one choice."""
        messages: list[dict[str, Any]] = []
        logprobs: list[Any] = []
        for item in payload.get("output") or ():
            if not isinstance(item, Mapping):
                continue
            _append(messages, item)
            for part in item.get("content") or ():
                if isinstance(part, Mapping):
                    logprobs.extend(part.get("logprobs") or ())
        message = _merged(messages)
        status, details = payload.get("status"), payload.get("incomplete_details") or {}
        if message.get("tool_calls"):
            reason: str | None = "tool_calls"
        elif status == "incomplete":
            reason = "length" if details.get("reason") == "max_output_tokens" else details.get("reason")
        else:
            reason = "stop" if status == "completed" else status
        choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": reason}
        if logprobs:
            choice["logprobs"] = {"content": logprobs}
        ids = payload.get("token_ids") or (payload.get("response_token_ids") or [None])[0]
        ids = ids or _tokens(payload.get("output_messages"))
        if ids:
            choice["token_ids"] = ids
        response: dict[str, Any] = {"choices": [choice] if payload.get("output") else []}
        for key in ("id", "model"):
            response[key] = payload.get(key)
        prompt_ids = payload.get("prompt_token_ids") or _tokens(payload.get("input_messages"))
        if prompt_ids:
            response["prompt_token_ids"] = prompt_ids
        usage = payload.get("usage")
        if usage:
            response["usage"] = {
                "prompt_tokens": usage.get("input_tokens"),
                "completion_tokens": usage.get("output_tokens"),
                "total_tokens": usage.get("total_tokens"),
                "prompt_tokens_details": usage.get("input_tokens_details"),
                "completion_tokens_details": usage.get("output_tokens_details"),
            }
        return response

    def assembly(self) -> Assembly:
        """Takes the response that the last event holds."""
        return _Assembly()

    def is_last(self, event: Mapping[str, Any]) -> bool:
        """Whether the response is over, whatever came of it."""
        return event.get("type") in ("response.completed", "response.incomplete", "response.failed")

    def strip(self, payload: dict[str, Any], asked: frozenset[str]) -> bool:
        """Token ids and log-probs, of a response or an event."""
        changed = False
        if isinstance(payload.get("response"), dict):
            changed |= self.strip(payload["response"], asked)
        if asked & {"return_token_ids", "enable_response_messages"}:
            changed |= drop(payload, *_TOKEN_KEYS)
        if "include" in asked:
            for item in (payload, payload.get("item"), *(payload.get("output") or ())):
                if isinstance(item, dict):
                    changed |= _without_logprobs(item)
        return changed


_SAME = ("model", "temperature", "top_p", "stream", "seed", "previous_response_id", "tool_choice")


def _without_logprobs(item: dict[str, Any]) -> bool:
    """An output item, or an event about one."""
    changed = False
    parts = item.get("content") if isinstance(item.get("content"), list) else []
    for part in (item, item.get("part"), *(parts or ())):
        if isinstance(part, dict) and part.get("logprobs"):
            # Where there are none, OpenAI's server and vLLM say so.
            part["logprobs"] = []
            changed = True
    return changed


def _tokens(messages: Any) -> list[int]:
    """The token ids in vLLM's raw messages."""
    return [
        token
        for message in messages or ()
        if isinstance(message, Mapping)
        for token in message.get("tokens") or ()
    ]


def _append(messages: list[dict[str, Any]], item: Mapping[str, Any]) -> None:
    """Adds an item to the messages: what the model said in one go is one message."""
    kind = item.get("type") or "message"
    if kind == "message":
        role = "system" if item.get("role") == "developer" else item.get("role") or "user"
        messages.append({"role": role, "content": _content(item.get("content"))})
    elif kind in ("function_call", "custom_tool_call"):
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": None})
        function = {"name": item.get("name"), "arguments": item.get("arguments", item.get("input"))}
        call = {"id": item.get("call_id") or item.get("id"), "type": "function", "function": function}
        messages[-1].setdefault("tool_calls", []).append(call)
    elif kind in ("function_call_output", "custom_tool_call_output"):
        content = _content(item.get("output"))
        messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": content})
    elif kind == "reasoning":
        text = "\n".join(
            part.get("text") or ""
            for part in [*(item.get("summary") or ()), *(item.get("content") or ())]
            if isinstance(part, Mapping)
        )
        if text:
            messages.append({"role": "assistant", "content": None, "reasoning_content": text})
    else:
        messages.append({"role": "assistant", "content": json.dumps(item, default=str)})


def _merged(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """Everything the model put out, as one message."""
    message: dict[str, Any] = {"role": "assistant", "content": None}
    for part in messages:
        for key in ("content", "reasoning_content"):
            if part.get(key):
                text = part[key] if isinstance(part[key], str) else json.dumps(part[key])
                message[key] = (message.get(key) or "") + text
        if part.get("tool_calls"):
            message.setdefault("tool_calls", []).extend(part["tool_calls"])
    return message


def _content(content: Any) -> Any:
    """Text as text; a list of parts in the chat route's words."""
    if not isinstance(content, list):
        return content
    parts = [_part(part) for part in content if isinstance(part, Mapping)]
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] or "" for part in parts)
    return parts


def _part(part: Mapping[str, Any]) -> dict[str, Any]:
    match part.get("type"):
        case "input_text" | "output_text" | "text" | "summary_text":
            return {"type": "text", "text": part.get("text")}
        case "refusal":
            return {"type": "text", "text": part.get("refusal")}
        case "input_image":
            url = part.get("image_url") or part.get("file_id")
            return {"type": "image_url", "image_url": {"url": url}}
        case _:
            return dict(part)


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    if tool.get("type") == "function":
        function = {key: tool.get(key) for key in ("name", "description", "parameters")}
        return {"type": "function", "function": function}
    return {**tool, "function": {"name": tool.get("name") or tool.get("type")}}


class _Assembly(Assembly):
    def __init__(self) -> None:
        self._response: dict[str, Any] = {}
        self._items: dict[int, dict[str, Any]] = {}
        self._texts: dict[int, str] = {}

    def add(self, event: Mapping[str, Any]) -> None:
        if isinstance(event.get("response"), Mapping):
            known = {key: value for key, value in event["response"].items() if value is not None}
            self._response.update(known)
        index = event.get("output_index") or 0
        match event.get("type"):
            case "response.output_item.added" | "response.output_item.done":
                self._items[index] = dict(event.get("item") or {})
            case "response.output_text.delta":
                self._texts[index] = self._texts.get(index, "") + (event.get("delta") or "")
            case "response.function_call_arguments.delta":
                item = self._items.setdefault(index, {"type": "function_call"})
                item["arguments"] = (item.get("arguments") or "") + (event.get("delta") or "")

    def whole(self) -> dict[str, Any]:
        if self._response.get("output"):
            return self._response
        # Cut off: what has come of it.
        output = []
        for index in sorted({*self._items, *self._texts}):
            item = self._items.get(index) or {"type": "message", "role": "assistant"}
            if not item.get("content") and index in self._texts:
                item = {**item, "content": [{"type": "output_text", "text": self._texts[index]}]}
            output.append(item)
        return {**self._response, "output": output}
