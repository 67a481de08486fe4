"""A server that answers chat completions as vLLM does: token ids, log-probs, tools, streams. Standard
library only.

What it answers is a function of the request, so that tests know it: the last message's words in reverse
order, unless the request says otherwise through the model's name (see `_reply`), or a test by `answer`. Token
ids are those of `ids_of`. Where a test has it `speak`, they are those of `rendered`, which lays out a whole
chat as the template of a model does.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def ids_of(text: str) -> list[int]:
    """One token id per word: the sum of its characters."""
    return [sum(map(ord, word)) for word in text.split()]


def reply_to(text: str) -> str:
    """What the model says to `text`."""
    return " ".join(reversed(text.split())) or "nothing"


_ROLES = ("system", "user", "assistant", "tool")
_MARKS = ("end", "think", "think_end", "image", "call", "arguments", "call_end", "tools")
SPECIAL = {name: 0x110000 + number for number, name in enumerate((*_ROLES, *_MARKS))}
"""Tokens that are no characters."""


def rendered(message: dict[str, Any]) -> list[int]:
    """What a chat template makes of a message after its role, a token for each character.

    What a model answers has these tokens too.
    """
    ids: list[int] = []
    if message.get("reasoning"):
        ids += [SPECIAL["think"], *map(ord, message["reasoning"]), SPECIAL["think_end"]]
    content = message.get("content") or ""
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
        ids += map(ord, part["text"]) if part["type"] == "text" else [SPECIAL["image"]]
    for call in message.get("tool_calls") or ():
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        ids += [SPECIAL["call"], *map(ord, name), SPECIAL["arguments"], *map(ord, arguments)]
        ids.append(SPECIAL["call_end"])
    return [*ids, SPECIAL["end"]]


def rendered_prompt(body: dict[str, Any]) -> list[int]:
    """What a chat template makes of a whole request, up to where the model begins to speak."""
    names = " ".join(tool["function"]["name"] for tool in body.get("tools") or ())
    ids = [SPECIAL["tools"], *map(ord, names)] if names else []
    for message in body["messages"]:
        ids += [SPECIAL[message["role"]], *rendered(message)]
    return [*ids, SPECIAL["assistant"]]


def decoded(ids: list[int]) -> str:
    """The text of the tokens of `rendered`."""
    names = {token: f"<{name}>" for name, token in SPECIAL.items()}
    return "".join(names.get(token) or chr(token) for token in ids)


class FakeVLLM:
    """The server, on a free port of this machine while the `with` block lasts."""

    def __init__(self, owned_by: str = "vllm") -> None:
        self.owned_by = owned_by
        self.requests: list[dict[str, Any]] = []
        self.probes = 0
        self.models_status = 200
        # Statuses that the next requests are answered with.
        self.failures: list[int] = []
        # What is answered to a request; the usual where it returns None.
        self.answer: Callable[[dict[str, Any]], str | None] = lambda body: None
        # The message that a chat is answered with; the usual where it returns None.
        self.speak: Callable[[dict[str, Any]], dict[str, Any] | None] = lambda body: None
        self._counter = 0
        self._lock = threading.Lock()
        fake = self

        class Handler(_Handler):
            server_state = fake

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.base_url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def next_id(self, prefix: str = "chatcmpl") -> str:
        with self._lock:
            self._counter += 1
            return f"{prefix}-{self._counter}"

    def __enter__(self) -> FakeVLLM:
        self._thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    # Frameworks open many connections at once.
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        # Clients hang up in mid-stream; that is what some tests are about.
        pass


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: FakeVLLM

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _send(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        if self.path == "/count":
            self._send(200, {"requests": len(self.server_state.requests)})
            return
        self.server_state.probes += 1
        if not self.path.endswith("/models"):
            self._send(404, {"error": {"message": "not found"}})
            return
        if self.server_state.models_status != 200:
            self._send(self.server_state.models_status, {"error": {"message": "not now"}})
            return
        model = {"id": "fake", "object": "model", "created": 1, "owned_by": self.server_state.owned_by}
        self._send(200, {"object": "list", "data": [model]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server_state.requests.append({**body, "_path": self.path, "_headers": dict(self.headers)})
        if self.server_state.failures:
            self._send(
                self.server_state.failures.pop(0), {"error": {"message": "not now", "type": "overloaded"}}
            )
            return
        if not any(key in body for key in ("messages", "prompt", "input", "contents")):
            self._send(404, {"error": {"message": "not found"}})
            return
        route = route_of(self.path.partition("?")[0])
        if route is not None:
            route(self, body)
            return
        if body["model"] == "bad":
            message = {"message": "The model `bad` does not exist.", "type": "NotFoundError", "code": 404}
            self._send(404, {"error": message})
            return
        if body["model"] == "no-extras" and "return_token_ids" in body:
            self._send(400, {"error": {"message": "unknown field return_token_ids", "code": 400}})
            return
        if body["model"].endswith("no-temperature") and "temperature" in body:
            message = "Unsupported value: 'temperature' does not support 1.0 with this model."
            self._send(400, {"error": {"message": message, "type": "invalid_request_error"}})
            return
        spoken = self.server_state.speak(body)
        if spoken is not None:
            body["_prompt_ids"] = rendered_prompt(body)
            choices = [_spoken(spoken)]
        else:
            text = self.server_state.answer(body)
            choices = [_choice(body, index, text) for index in range(body.get("n") or 1)]
        if body.get("stream"):
            self._stream(body, choices)
        else:
            self._send(200, self._completion(body, choices))

    def _completion(self, body: dict[str, Any], choices: list[dict[str, Any]]) -> dict[str, Any]:
        prompt_ids = _prompt_ids(body)
        response_tokens = sum(len(choice["ids"]) for choice in choices)
        completion: dict[str, Any] = {
            "id": self.server_state.next_id(),
            "object": "chat.completion",
            "created": int(time.time()),
            "model": body["model"],
            "choices": [
                {
                    "index": choice["index"],
                    "message": choice["message"],
                    "finish_reason": choice["finish_reason"],
                    "logprobs": _logprobs(choice["ids"]) if body.get("logprobs") else None,
                    **({"token_ids": choice["ids"]} if body.get("return_token_ids") else {}),
                }
                for choice in choices
            ],
            "usage": {
                "prompt_tokens": len(prompt_ids),
                "completion_tokens": response_tokens,
                "total_tokens": len(prompt_ids) + response_tokens,
            },
        }
        if body.get("return_token_ids"):
            completion["prompt_token_ids"] = prompt_ids
        return completion

    def begin_events(self, content_type: str = "text/event-stream") -> None:
        """Sends the head of a streamed response."""
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def end_events(self) -> None:
        """Sends the end of a streamed response."""
        self.wfile.write(b"0\r\n\r\n")

    def _stream(self, body: dict[str, Any], choices: list[dict[str, Any]]) -> None:
        base = {
            "id": self.server_state.next_id(),
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": body["model"],
        }
        self.begin_events()
        first = True
        for choice in choices:
            for event in choice.get("deltas") or _deltas(choice):
                part: dict[str, Any] = {
                    "index": choice["index"],
                    "delta": event["delta"],
                    "finish_reason": event.get("finish_reason"),
                    "logprobs": None,
                }
                chunk: dict[str, Any] = {**base, "choices": [part]}
                if body.get("return_token_ids"):
                    part["token_ids"] = event.get("ids")
                    if first:
                        chunk["prompt_token_ids"] = _prompt_ids(body)
                if body.get("logprobs") and event.get("ids"):
                    part["logprobs"] = _logprobs(event["ids"])
                first = False
                self._event(json.dumps(chunk))
        if body["model"] == "breaks":
            # The connection ends in the middle of the stream.
            self.close_connection = True
            return
        if (body.get("stream_options") or {}).get("include_usage"):
            prompt, answer = len(_prompt_ids(body)), sum(len(choice["ids"]) for choice in choices)
            usage = {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
            self._event(json.dumps({**base, "choices": [], "usage": usage}))
        self._event("[DONE]")
        self.end_events()

    def _event(self, data: str) -> None:
        self.send_piece(f"data: {data}\n\n")

    def send_piece(self, text: str) -> None:
        """Sends a piece of a streamed response."""
        payload = text.encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(payload), payload))
        self.wfile.flush()


def text_of(content: Any) -> str:
    """A message's text: of all its parts, if it has any."""
    if isinstance(content, str):
        return content
    return " ".join(part.get("text") or "" for part in content or () if isinstance(part, dict))


def _prompt_ids(body: dict[str, Any]) -> list[int]:
    if "_prompt_ids" in body:
        ids: list[int] = body["_prompt_ids"]
        return ids
    return [token for message in body["messages"] for token in ids_of(text_of(message.get("content")))]


def _logprobs(ids: list[int]) -> dict[str, Any]:
    return {
        "content": [{"token": str(i), "logprob": -0.5, "bytes": None, "top_logprobs": []} for i in ids],
        "refusal": None,
    }


def _choice(body: dict[str, Any], index: int, text: str | None = None) -> dict[str, Any]:
    last = body["messages"][-1]
    call = _tool_call(body, last)
    if call is not None:
        number = 1 + sum(message["role"] == "tool" for message in body["messages"])
        made = {"id": f"call-{number}", "type": "function", "function": call}
        message = {"role": "assistant", "content": None, "tool_calls": [made]}
        return {"index": index, "message": message, "finish_reason": "tool_calls", "ids": [1, 2, 3]}
    if text is not None:
        reply = text
    elif body.get("response_format"):
        reply = "{}"
    else:
        reply = _reply(body, text_of(last.get("content")))
    if index:
        reply = f"{reply} {index}"
    message = {"role": "assistant", "content": reply}
    reason = "length" if body["model"] == "cut" else "stop"
    return {"index": index, "message": message, "finish_reason": reason, "ids": ids_of(reply)}


def _spoken(said: dict[str, Any]) -> dict[str, Any]:
    """A choice with this message, and the pieces that a stream has of it."""
    message = {"role": "assistant", "content": None, **said}
    calls = message.get("tool_calls") or []
    for number, call in enumerate(calls):
        call.setdefault("type", "function")
        call.setdefault("id", f"call-{number}")
    pieces: list[dict[str, Any]] = []
    for key in ("reasoning", "content"):
        text = message.get(key) or ""
        pieces += [{key: text[at : at + 5]} for at in range(0, len(text), 5)]
    for number, call in enumerate(calls):
        function = call["function"]
        head = {"index": number, "id": call["id"], "type": "function"}
        pieces.append({"tool_calls": [{**head, "function": {"name": function["name"], "arguments": ""}}]})
        for at in range(0, len(function["arguments"]), 3):
            part = {"index": number, "function": {"arguments": function["arguments"][at : at + 3]}}
            pieces.append({"tool_calls": [part]})
    ids = rendered(message)
    # How tokens are spread over the pieces is the server's affair, but for their order.
    each = -(-len(ids) // (len(pieces) + 1))
    deltas = [{"delta": {"role": "assistant", "content": ""}}]
    for number, piece in enumerate(pieces):
        deltas.append({"delta": piece, "ids": ids[number * each : (number + 1) * each]})
    reason = "tool_calls" if calls else "stop"
    deltas.append({"delta": {}, "finish_reason": reason, "ids": ids[len(pieces) * each :]})
    return {"index": 0, "message": message, "finish_reason": reason, "ids": ids, "deltas": deltas}


def _tool_call(body: dict[str, Any], last: dict[str, Any]) -> dict[str, str] | None:
    """The tool that the model calls: the first, until it has an answer, and then one that ends the work."""
    names = [tool["function"]["name"] for tool in body.get("tools") or () if "function" in tool]
    answered = any(
        message["role"] == "tool"
        # smolagents tells results so.
        or (message["role"] == "user" and text_of(message.get("content")).startswith("Observation:"))
        for message in body["messages"]
    )
    if names and not answered:
        return {"name": names[0], "arguments": '{"x": 1}'}
    if "final_answer" in names:
        return {"name": "final_answer", "arguments": '{"answer": "done"}'}
    return None


def _reply(body: dict[str, Any], text: str) -> str:
    """What the model says, in the form that the prompt wants it in."""
    prompt = "\n".join(text_of(message.get("content")) for message in body["messages"])
    if "[[ ## completed ## ]]" in prompt:
        # DSPy
        fields = re.findall(r"\[\[ ## (\w+) ## \]\]", text.rpartition("Respond with")[2])
        return "\n\n".join(f"[[ ## {field} ## ]]\n{_dspy(field, prompt)}" for field in dict.fromkeys(fields))
    if "</code>" in prompt:
        # smolagents' agents that write code, in which their tools are functions.
        name = re.findall(r"^def (\w+)\(", prompt, re.MULTILINE)[0]
        return f"Thought: I use it\n<code>\nfinal_answer({name}(x=1))\n</code>"
    if "Action Input:" in prompt:
        # ReAct, as LangChain's older agents and CrewAI's have it.
        tools = re.search(r"should be (?:one of|only one name of) \[([\w-]+)", prompt)
        if tools and "Observation: " not in prompt.rpartition("Begin!")[2].partition("Thought:")[2]:
            return f"I have to look\nAction: {tools.group(1)}\nAction Input: 1"
        return "Thought: I now know the final answer\nFinal Answer: done"
    if "Final Answer:" in prompt:
        return "Thought: I now can give a great answer\nFinal Answer: done"
    return reply_to(text)


def _dspy(field: str, prompt: str) -> str:
    return {"next_tool_name": "finish", "next_tool_args": "{}", "completed": ""}.get(field, "done")


def _deltas(choice: dict[str, Any]) -> list[dict[str, Any]]:
    """A choice in the pieces that a stream has: the role, the words, the end."""
    events: list[dict[str, Any]] = [{"delta": {"role": "assistant", "content": ""}}]
    message = choice["message"]
    for number, call in enumerate(message.get("tool_calls") or ()):
        head = {
            "id": call["id"],
            "type": "function",
            "function": {"name": call["function"]["name"], "arguments": ""},
        }
        events.append({"delta": {"tool_calls": [{"index": number, **head}]}, "ids": choice["ids"][:1]})
        arguments = call["function"]["arguments"]
        for piece, ids in ((arguments[:3], choice["ids"][1:2]), (arguments[3:], choice["ids"][2:])):
            events.append(
                {"delta": {"tool_calls": [{"index": number, "function": {"arguments": piece}}]}, "ids": ids}
            )
    for number, word in enumerate((message["content"] or "").split()):
        events.append({"delta": {"content": f" {word}" if number else word}, "ids": ids_of(word)})
    events.append({"delta": {}, "finish_reason": choice["finish_reason"]})
    return events


def route_of(path: str) -> Any:
    """What answers a path other than chat completions."""
    from fake_routes import ROUTES

    return next((route for end, route in ROUTES.items() if path.endswith(end)), None)


if __name__ == "__main__":
    with FakeVLLM() as server:
        print(server.base_url, flush=True)
        sys.stdin.read()
