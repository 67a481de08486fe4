"""The other routes of the fake model server: what `fake_vllm` answers, in the words of each dialect.

Token ids come where they are asked for with `return_token_ids`: on `responses` as vLLM gives them, on
`messages` as gateways do.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator
from typing import Any

from fake_vllm import _choice, _Handler, _logprobs, _prompt_ids, ids_of, reply_to


def completions(handler: _Handler, body: dict[str, Any]) -> None:
    """OpenAI's older `completions`."""
    prompt = body["prompt"]
    text = reply_to(prompt)
    ids, prompt_ids = ids_of(text), ids_of(prompt)
    base = {
        "id": handler.server_state.next_id("cmpl"),
        "object": "text_completion",
        "created": 1,
        "model": body["model"],
    }
    usage = {
        "prompt_tokens": len(prompt_ids),
        "completion_tokens": len(ids),
        "total_tokens": len(prompt_ids) + len(ids),
    }

    def choice(piece: str, ids: list[int], reason: str | None) -> dict[str, Any]:
        made: dict[str, Any] = {"index": 0, "text": piece, "finish_reason": reason, "logprobs": None}
        if body.get("logprobs"):
            tokens = [str(token) for token in ids]
            made["logprobs"] = {"tokens": tokens, "token_logprobs": [-0.5] * len(ids), "top_logprobs": None}
        if body.get("return_token_ids"):
            made["token_ids"], made["prompt_token_ids"] = ids, prompt_ids
        return made

    if not body.get("stream"):
        handler._send(200, {**base, "choices": [choice(text, ids, "stop")], "usage": usage})
        return
    handler.begin_events()
    words = text.split()
    for number, word in enumerate(words):
        piece = f" {word}" if number else word
        reason = "stop" if number == len(words) - 1 else None
        handler._event(json.dumps({**base, "choices": [choice(piece, ids_of(word), reason)]}))
    handler._event("[DONE]")
    handler.end_events()


def embeddings(handler: _Handler, body: dict[str, Any]) -> None:
    """OpenAI's `embeddings`, numbers as they are or in base64."""
    inputs = [body["input"]] if isinstance(body["input"], str) else body["input"]
    data = []
    for index, text in enumerate(inputs):
        numbers = [float(len(text)), 0.25]
        packed = base64.b64encode(struct.pack("<2f", *numbers)).decode()
        vector: Any = packed if body.get("encoding_format") == "base64" else numbers
        data.append({"object": "embedding", "index": index, "embedding": vector})
    count = sum(len(ids_of(text)) for text in inputs)
    usage = {"prompt_tokens": count, "total_tokens": count}
    handler._send(200, {"object": "list", "data": data, "model": body["model"], "usage": usage})


def responses(handler: _Handler, body: dict[str, Any]) -> None:
    """OpenAI's `responses`."""
    chat = _chat_of_responses(body)
    choice, prompt_ids = _choice(chat, 0), _prompt_ids(chat)
    message, ids = choice["message"], choice["ids"]
    response_id = handler.server_state.next_id("resp")
    items: list[dict[str, Any]] = []
    if message.get("content") is not None:
        wants_logprobs = "message.output_text.logprobs" in (body.get("include") or ())
        part = {
            "type": "output_text",
            "text": message["content"],
            "annotations": [],
            "logprobs": _logprobs(ids)["content"] if wants_logprobs else [],
        }
        items.append(
            {
                "type": "message",
                "id": f"msg_{response_id}",
                "role": "assistant",
                "status": "completed",
                "content": [part],
            }
        )
    items += [
        {
            "type": "function_call",
            "id": f"fc_{response_id}",
            "call_id": call["id"],
            "name": call["function"]["name"],
            "arguments": call["function"]["arguments"],
            "status": "completed",
        }
        for call in message.get("tool_calls") or ()
    ]
    whole: dict[str, Any] = {
        "id": response_id,
        "object": "response",
        "created_at": 1,
        "model": body["model"],
        "status": "completed",
        "output": items,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": body.get("tools") or [],
        "usage": {
            "input_tokens": len(prompt_ids),
            "output_tokens": len(ids),
            "total_tokens": len(prompt_ids) + len(ids),
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
        },
    }
    if body.get("enable_response_messages"):
        raw = {"type": "raw_message_tokens", "message": ""}
        whole["input_messages"] = [{**raw, "tokens": prompt_ids}]
        whole["output_messages"] = [{**raw, "tokens": ids}]
    if not body.get("stream"):
        handler._send(200, whole)
        return
    handler.begin_events()
    for number, (kind, fields) in enumerate(_response_events(whole)):
        event = {"type": kind, "sequence_number": number, **fields}
        handler.send_piece(f"event: {kind}\ndata: {json.dumps(event)}\n\n")
    handler.end_events()


def _chat_of_responses(body: dict[str, Any]) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    if body.get("instructions"):
        messages.append({"role": "system", "content": body["instructions"]})
    items = body["input"]
    for item in [{"role": "user", "content": items}] if isinstance(items, str) else items:
        match item.get("type", "message"):
            case "message":
                content = item["content"]
                if isinstance(content, list):
                    content = "".join(part.get("text") or "" for part in content)
                messages.append({"role": item["role"], "content": content})
            case "function_call":
                function = {"name": item["name"], "arguments": item["arguments"]}
                call = {"id": item["call_id"], "type": "function", "function": function}
                messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
            case "function_call_output":
                messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": item["output"]})
    tools = [
        {"type": "function", "function": tool}
        for tool in body.get("tools") or ()
        if tool["type"] == "function"
    ]
    return {"model": body["model"], "messages": messages, "tools": tools}


def _response_events(whole: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    begun = {**whole, "status": "in_progress", "output": [], "usage": None}
    begun.pop("input_messages", None)
    begun.pop("output_messages", None)
    yield "response.created", {"response": begun}
    for index, item in enumerate(whole["output"]):
        place = {"output_index": index, "item_id": item["id"]}
        if item["type"] == "function_call":
            yield "response.output_item.added", {"output_index": index, "item": {**item, "arguments": ""}}
            yield "response.function_call_arguments.delta", {**place, "delta": item["arguments"]}
            done = {**place, "arguments": item["arguments"], "name": item["name"]}
            yield "response.function_call_arguments.done", done
        else:
            (part,) = item["content"]
            place = {**place, "content_index": 0}
            yield "response.output_item.added", {"output_index": index, "item": {**item, "content": []}}
            empty = {**part, "text": "", "logprobs": []}
            yield "response.content_part.added", {**place, "part": empty}
            for number, word in enumerate(part["text"].split()):
                delta = f" {word}" if number else word
                logprobs = part["logprobs"][number : number + 1]
                yield "response.output_text.delta", {**place, "delta": delta, "logprobs": logprobs}
            done = {**place, "text": part["text"], "logprobs": part["logprobs"]}
            yield "response.output_text.done", done
            yield "response.content_part.done", {**place, "part": part}
        yield "response.output_item.done", {"output_index": index, "item": item}
    yield "response.completed", {"response": whole}


def messages(handler: _Handler, body: dict[str, Any]) -> None:
    """Anthropic's `messages`."""
    chat = _chat_of_messages(body)
    choice, prompt_ids = _choice(chat, 0), _prompt_ids(chat)
    message, ids = choice["message"], choice["ids"]
    blocks: list[dict[str, Any]] = []
    if message.get("content") is not None:
        blocks.append({"type": "text", "text": message["content"]})
    for call in message.get("tool_calls") or ():
        function = call["function"]
        arguments = json.loads(function["arguments"])
        blocks.append({"type": "tool_use", "id": call["id"], "name": function["name"], "input": arguments})
    whole: dict[str, Any] = {
        "id": handler.server_state.next_id("msg"),
        "type": "message",
        "role": "assistant",
        "model": body["model"],
        "content": blocks,
        "stop_reason": "tool_use" if message.get("tool_calls") else "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": len(prompt_ids), "output_tokens": len(ids)},
    }
    extras: dict[str, Any] = {}
    if body.get("return_token_ids"):
        extras = {"prompt_token_ids": prompt_ids, "token_ids": ids}
    if body.get("logprobs"):
        extras["logprobs"] = _logprobs(ids)
    if not body.get("stream"):
        handler._send(200, {**whole, **extras})
        return
    handler.begin_events()
    for event in _message_events(whole, extras):
        handler.send_piece(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n")
    handler.end_events()


def _chat_of_messages(body: dict[str, Any]) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    if body.get("system"):
        system = body["system"]
        text = system if isinstance(system, str) else "".join(block["text"] for block in system)
        messages.append({"role": "system", "content": text})
    for message in body["messages"]:
        content = message["content"]
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        for block in blocks:
            match block["type"]:
                case "tool_result":
                    text = json.dumps(block.get("content"))
                    messages.append({"role": "tool", "tool_call_id": block["tool_use_id"], "content": text})
                case "tool_use":
                    messages.append({"role": "assistant", "content": None})
                case _:
                    messages.append({"role": message["role"], "content": block.get("text")})
    tools = [{"type": "function", "function": tool} for tool in body.get("tools") or ()]
    return {"model": body["model"], "messages": messages, "tools": tools}


def _message_events(whole: dict[str, Any], extras: dict[str, Any]) -> Iterator[dict[str, Any]]:
    usage = {"input_tokens": whole["usage"]["input_tokens"], "output_tokens": 1}
    begun = {**whole, "content": [], "stop_reason": None, "usage": usage}
    yield {"type": "message_start", "message": begun}
    yield {"type": "ping"}
    for index, block in enumerate(whole["content"]):
        if block["type"] == "text":
            yield {
                "type": "content_block_start",
                "index": index,
                "content_block": {"type": "text", "text": ""},
            }
            for number, word in enumerate(block["text"].split()):
                delta = {"type": "text_delta", "text": f" {word}" if number else word}
                yield {"type": "content_block_delta", "index": index, "delta": delta}
        else:
            yield {"type": "content_block_start", "index": index, "content_block": {**block, "input": {}}}
            delta = {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    delta = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
    usage = {"output_tokens": whole["usage"]["output_tokens"]}
    yield {"type": "message_delta", "delta": delta, "usage": usage, **extras}
    yield {"type": "message_stop"}


def generate_content(handler: _Handler, body: dict[str, Any]) -> None:
    """Google's `generateContent`, and its streaming twin."""
    chat = _chat_of_contents(body)
    choice, prompt_ids = _choice(chat, 0), _prompt_ids(chat)
    message, ids = choice["message"], choice["ids"]
    parts: list[dict[str, Any]] = []
    if message.get("content") is not None:
        parts.append({"text": message["content"]})
    for call in message.get("tool_calls") or ():
        function = call["function"]
        parts.append({"functionCall": {"name": function["name"], "args": json.loads(function["arguments"])}})
    usage = {
        "promptTokenCount": len(prompt_ids),
        "candidatesTokenCount": len(ids),
        "totalTokenCount": len(prompt_ids) + len(ids),
    }
    base = {"modelVersion": "fake", "responseId": handler.server_state.next_id("gen")}

    def candidate(parts: list[dict[str, Any]], reason: str | None) -> dict[str, Any]:
        content = {"role": "model", "parts": parts}
        return {"content": content, "index": 0, **({"finishReason": reason} if reason else {})}

    if ":streamGenerateContent" not in handler.path:
        handler._send(200, {**base, "candidates": [candidate(parts, "STOP")], "usageMetadata": usage})
        return
    pieces = [
        {"text": f" {word}" if number else word}
        for part in parts
        if "text" in part
        for number, word in enumerate(part["text"].split())
    ] + [part for part in parts if "text" not in part]
    handler.begin_events()
    for number, piece in enumerate(pieces):
        last = number == len(pieces) - 1
        event = {**base, "candidates": [candidate([piece], "STOP" if last else None)]}
        handler._event(json.dumps({**event, **({"usageMetadata": usage} if last else {})}))
    handler.end_events()


def _chat_of_contents(body: dict[str, Any]) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    contents = body["contents"]
    system = body.get("systemInstruction")
    for content in [*([{**system, "role": "system"}] if system else []), *contents]:
        for part in content["parts"]:
            if "functionResponse" in part:
                text = json.dumps(part["functionResponse"])
                messages.append({"role": "tool", "tool_call_id": "x", "content": text})
            elif "functionCall" in part:
                messages.append({"role": "assistant", "content": None})
            else:
                role = {"model": "assistant"}.get(content.get("role"), content.get("role") or "user")
                messages.append({"role": role, "content": part.get("text")})
    tools = [
        {"type": "function", "function": declaration}
        for tool in body.get("tools") or ()
        for declaration in tool.get("functionDeclarations") or ()
    ]
    return {"model": "gemini", "messages": messages, "tools": tools}


def ollama(handler: _Handler, body: dict[str, Any]) -> None:
    """Ollama's `api/chat`."""
    choice, prompt_ids = _choice(body, 0), _prompt_ids(body)
    message = choice["message"]
    said = {"role": "assistant", "content": message.get("content") or ""}
    if message.get("tool_calls"):
        said["tool_calls"] = [
            {
                "function": {
                    "name": call["function"]["name"],
                    "arguments": json.loads(call["function"]["arguments"]),
                }
            }
            for call in message["tool_calls"]
        ]
    base = {"model": body["model"], "created_at": "2026-01-01T00:00:00Z"}
    end = {
        "done": True,
        "done_reason": "stop",
        "prompt_eval_count": len(prompt_ids),
        "eval_count": len(choice["ids"]),
    }
    if body.get("stream") is False:
        handler._send(200, {**base, "message": said, **end})
        return
    handler.begin_events("application/x-ndjson")
    pieces = [f" {word}" if number else word for number, word in enumerate(said["content"].split())]
    for piece in pieces:
        message = {"role": "assistant", "content": piece}
        handler.send_piece(json.dumps({**base, "message": message, "done": False}) + "\n")
    handler.send_piece(json.dumps({**base, "message": {**said, "content": ""}, **end}) + "\n")
    handler.end_events()


ROUTES = {
    "/v1/completions": completions,
    "/embeddings": embeddings,
    "/responses": responses,
    "/messages": messages,
    ":generateContent": generate_content,
    ":streamGenerateContent": generate_content,
    "/api/chat": ollama,
}
