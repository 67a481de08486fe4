"""Records chat completions made with the OpenAI SDK: plain, async, streamed, and raw responses.

The patch sits on `OpenAI.request` and `AsyncOpenAI.request`, which every way of making a call comes through:
`create`, `parse`, `stream`, `with_raw_response` (LangChain), `with_streaming_response`, Azure, and clients
made before the patch.

A model server that can is asked for token ids and log-probabilities: our own gateway (an active `ProxyLLM`),
vLLM, and others that say so under `GET /models`. What was only asked for here is taken out of parsed
responses again; a raw response that the caller reads as bytes or text still shows it.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing, closing
from http.client import HTTPException
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import openai
from openai import AsyncStream, Stream
from opentelemetry import trace as trace_api

from agentlightning import _core
from agentlightning._native import encode
from agentlightning.tracer.otel import TraceSession, current_session
from agentlightning.tracer.resources import active_resources
from agentlightning.types import ProxyLLM

logger = logging.getLogger(__name__)

SPAN_NAME = "openai.chat.completion"
_PATH = "/chat/completions"
_MARK = "_agentlightning_original"
_TRACER_NAME = "agentlightning.instrumentation.openai"

TOKEN_ID_SERVERS = frozenset({"vllm", "agentlightning", "agent-lightning", "agl"})
"""What servers that know `return_token_ids` call themselves in the `owned_by` of their models."""
# Servers that are known not to, and are not to be bothered.
_FOREIGN_HOSTS = (
    ".openai.com",
    ".azure.com",
    ".anthropic.com",
    ".googleapis.com",
    ".openrouter.ai",
    ".groq.com",
)
_PROBE_SECONDS = 2.0
_PROBE_AGAIN_SECONDS = 30.0
"""How long a server that gave no definite answer is left alone: one that hangs must not slow every call."""
# A server that answers so is there and well, and has no list of models for us.
_NO_MODELS = frozenset({401, 403, 404, 405})


class _Verdict(NamedTuple):
    """What is known of a server: whether it knows token ids, and until when (`time.monotonic`) that holds."""

    knows: bool
    until: float


_probes: dict[str, _Verdict] = {}
_probes_lock = threading.Lock()


# Which servers to ask for token ids


def _proxied(base_url: str) -> bool:
    """Whether this is the address of a gateway among the active resources."""
    for resource in (active_resources.get() or {}).values():
        if isinstance(resource, ProxyLLM):
            root = resource.get_base_url(None, None).rstrip("/").removesuffix("/v1")
            if base_url == root or base_url.startswith(root + "/"):
                return True
    return False


def _probe(base_url: str, api_key: str) -> bool:
    """Asks a server whether it is one that knows token ids: once, if the answer is definite."""
    host = urlsplit(base_url).hostname or ""
    if any(f".{host}".endswith(foreign) for foreign in _FOREIGN_HOSTS):
        return False
    known = _known(base_url)
    if known is not None:
        return known
    request = urllib.request.Request(f"{base_url}/models", headers={"Authorization": f"Bearer {api_key}"})
    try:
        with urllib.request.urlopen(request, timeout=_PROBE_SECONDS) as response:
            models = json.loads(response.read(1_000_000)).get("data") or []
        owners = sorted({str(model.get("owned_by", "")).lower() for model in models})
    except urllib.error.HTTPError as error:
        error.close()
        return _judge(base_url, f"it answers HTTP {error.code}", definite=error.code in _NO_MODELS)
    except (OSError, HTTPException, ValueError, AttributeError) as error:
        # It may only be down for now.
        return _judge(base_url, f"it can't be asked: {error!r}", definite=False)
    if TOKEN_ID_SERVERS.isdisjoint(owners):
        return _judge(base_url, f"its models are owned by {owners}", definite=True)
    with _probes_lock:
        _probes[base_url] = _Verdict(True, math.inf)
    return True


def _known(base_url: str) -> bool | None:
    """What is known of a server; None when it is to be asked."""
    with _probes_lock:
        verdict = _probes.get(base_url)
    return None if verdict is None or time.monotonic() >= verdict.until else verdict.knows


def _judge(base_url: str, reason: str, *, definite: bool) -> bool:
    """Notes that a server does not know token ids, for good or for now, and says so the first time."""
    until = math.inf if definite else time.monotonic() + _PROBE_AGAIN_SECONDS
    with _probes_lock:
        previous = _probes.get(base_url)
        _probes[base_url] = _Verdict(False, until)
    if previous is None or (definite and previous.until != math.inf):
        again = "" if definite else f"; it is asked again after {_PROBE_AGAIN_SECONDS:.0f} seconds"
        logger.info("No token ids are asked for at %s: %s%s.", base_url, reason, again)
    return False


def forget_probes() -> None:
    """Forgets which servers know token ids."""
    with _probes_lock:
        _probes.clear()


# Attributes


def _attributes(request: bytes, response: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of a call: those that every reader of traces knows, and what they have no name for."""
    attributes: dict[str, Any] = json.loads(_core.chat_attributes(request, encode(response)))
    filtered = response.get("prompt_filter_results")
    if filtered:
        attributes["gen_ai.prompt.prompt_filter_results"] = json.dumps(filtered)
    for choice in response.get("choices") or ():
        index = choice.get("index", 0)
        prefix = f"gen_ai.completion.{index}"
        if choice.get("content_filter_results"):
            attributes[f"{prefix}.content_filter_results"] = json.dumps(choice["content_filter_results"])
        for number, call in enumerate((choice.get("message") or {}).get("tool_calls") or ()):
            function = call.get("function") or {}
            values = {
                "id": call.get("id"),
                "name": function.get("name"),
                "arguments": function.get("arguments"),
            }
            for key, value in values.items():
                if value is not None:
                    attributes[f"{prefix}.tool_calls.{number}.{key}"] = value
        if index == 0:
            continue
        # The first choice has names that all readers know; further ones carry their number.
        token_ids = _choice_token_ids(choice)
        if token_ids is not None:
            attributes[f"response_token_ids.{index}"] = token_ids
        for key in ("content", "refusal"):
            entries = (choice.get("logprobs") or {}).get(key)
            if entries is not None:
                attributes[f"logprobs.{key}.{index}"] = json.dumps(entries)
    return attributes


def _choice_token_ids(choice: Mapping[str, Any]) -> list[int] | None:
    ids = choice.get("token_ids")
    if ids is None:
        ids = (choice.get("provider_specific_fields") or {}).get("token_ids")
    return ids


# One call


class _Call:
    """One chat completion on its way into a span."""

    def __init__(self, session: TraceSession, body: Mapping[str, Any], asked: frozenset[str]) -> None:
        self.session = session
        self.asked = asked
        self.streamed = bool(body.get("stream"))
        self._request = json.dumps(body, default=str).encode()
        self.started = time.time()
        self._first_chunk: float | None = None
        self._last_chunk: float | None = None
        self._chunks = 0
        self._assembled: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        # What has been read of a body that the caller reads by itself; None where it is parsed.
        self._body: list[bytes] | None = None
        self._lock = threading.Lock()
        self._done = False
        self._tracer = session.tracer_provider.get_tracer(_TRACER_NAME)
        self.span = self._tracer.start_span(SPAN_NAME, attributes=_attributes(self._request, {}))
        session.add_closer(self.abandon)

    # Whatever goes wrong in here is our own fault and must not become the agent's.

    def post_parser(self, parsed: Any) -> Any:
        """Sees every parsed response on its way to the caller: completions and streams."""
        try:
            if isinstance(parsed, (Stream, AsyncStream)):
                self._watch(parsed)
            elif parsed is not None and hasattr(parsed, "model_dump"):
                self.finish(parsed.model_dump(mode="json", exclude_unset=True, warnings=False))
                self._strip(parsed)
        except Exception:
            logger.exception("A chat completion could not be recorded.")
        return parsed

    def raw(self, response: Any) -> None:
        """Records a response that the caller gets unparsed."""
        http_response = getattr(response, "http_response", None)
        if self._done or http_response is None:
            return
        try:
            if not http_response.is_closed:
                # The body has yet to come; it is recorded when it is parsed or has been read.
                self._watch_body(http_response)
            elif not self.streamed:
                self.finish(json.loads(http_response.content))
        except Exception:
            logger.exception("A chat completion could not be recorded.")

    def finish(self, response: Mapping[str, Any]) -> None:
        """Ends the span with a complete response."""
        self._end(_attributes(self._request, response), response)

    def fail(self, error: BaseException) -> None:
        """Ends the span with the error that the caller gets."""
        attributes = self._stream_attributes() if self._chunks else {}
        self._end(attributes, self._response() if self._chunks else {}, error=error)

    def abandon(self) -> None:
        """Ends the span of a response that has not been read to its end."""
        if self.streamed:
            self._merge_body()
        attributes = self._stream_attributes()
        attributes["llm.openai.stream.complete"] = False
        self._end(attributes, self._response(), end_time=self._last_chunk)

    def _end(
        self,
        attributes: dict[str, Any],
        response: Mapping[str, Any],
        *,
        error: BaseException | None = None,
        end_time: float | None = None,
    ) -> None:
        with self._lock:
            if self._done:
                return
            self._done = True
        self.session.remove_closer(self.abandon)
        try:
            self.span.set_attributes(attributes)
            if error is None:
                self.span.set_status(trace_api.StatusCode.OK)
            else:
                self.span.record_exception(error)
                self.span.set_status(trace_api.StatusCode.ERROR, str(error))
            self._tool_calls(response)
        finally:
            self.span.end(end_time=None if end_time is None else int(end_time * 1e9))

    def _tool_calls(self, response: Mapping[str, Any]) -> None:
        """A child span for each tool call that the model asks for."""
        parent = trace_api.set_span_in_context(self.span)
        for name, attributes in json.loads(_core.tool_call_attributes(encode(response))):
            span = self._tracer.start_span(name, context=parent, attributes=attributes)
            span.set_status(trace_api.StatusCode.OK)
            span.end()

    def _strip(self, parsed: Any) -> None:
        """Takes out of a completion or chunk what the caller has not asked for."""
        choices = getattr(parsed, "choices", None) or ()
        if "return_token_ids" in self.asked:
            for model, names in (
                (parsed, ("prompt_token_ids",)),
                *((choice, ("token_ids",)) for choice in choices),
            ):
                extra = getattr(model, "model_extra", None) or {}
                for name in names:
                    extra.pop(name, None)
        if "logprobs" in self.asked:
            for choice in choices:
                choice.logprobs = None

    # Streams

    def _watch(self, stream: Any) -> None:
        """Looks over the shoulder of whoever reads the stream."""
        self._body = None
        if not hasattr(stream, "_iterator"):
            logger.warning("This version of the OpenAI SDK streams in a way that can't be recorded.")
            return
        close = stream.close
        if isinstance(stream, AsyncStream):
            stream._iterator = self._watched_async(stream._iterator)

            async def async_close() -> None:
                self.abandon()
                await close()

            stream.close = async_close  # type: ignore[method-assign]
        else:
            stream._iterator = self._watched(stream._iterator)

            def sync_close() -> None:
                self.abandon()
                close()

            stream.close = sync_close

    def _watched(self, chunks: Iterator[Any]) -> Iterator[Any]:
        try:
            for chunk in chunks:
                self._take(chunk)
                yield chunk
            self._complete()
        except Exception as exc:
            self.fail(exc)
            raise
        finally:
            self.abandon()
            if hasattr(chunks, "close"):
                chunks.close()

    async def _watched_async(self, chunks: AsyncIterator[Any]) -> AsyncIterator[Any]:
        try:
            async for chunk in chunks:
                self._take(chunk)
                yield chunk
            self._complete()
        except Exception as exc:
            self.fail(exc)
            raise
        finally:
            self.abandon()
            if hasattr(chunks, "aclose"):
                await chunks.aclose()

    # Bodies that the caller reads as bytes, text or lines

    def _watch_body(self, http_response: Any) -> None:
        """Looks over the shoulder of whoever reads the body: every way of reading it decoded comes through
        `iter_bytes`, or `aiter_bytes`."""
        self._body = []
        iter_bytes, aiter_bytes = http_response.iter_bytes, http_response.aiter_bytes

        def watched(chunk_size: int | None = None) -> Iterator[bytes]:
            try:
                with closing(iter_bytes(chunk_size)) as parts:
                    for part in parts:
                        self._take_bytes(part)
                        yield part
            except Exception as exc:
                self.fail(exc)
                raise
            self._body_complete()

        async def watched_async(chunk_size: int | None = None) -> AsyncIterator[bytes]:
            try:
                async with aclosing(aiter_bytes(chunk_size)) as parts:
                    async for part in parts:
                        self._take_bytes(part)
                        yield part
            except Exception as exc:
                self.fail(exc)
                raise
            self._body_complete()

        http_response.iter_bytes, http_response.aiter_bytes = watched, watched_async

    def _take_bytes(self, part: bytes) -> None:
        if self._body is not None:
            self._last_chunk = time.time()
            self._first_chunk = self._first_chunk or self._last_chunk
            self._body.append(part)

    def _body_complete(self) -> None:
        if self._body is None or self._done:
            return
        try:
            if self.streamed:
                self._merge_body()
                self._complete()
            else:
                self.finish(json.loads(b"".join(self._body)))
        except Exception:
            logger.exception("A chat completion could not be recorded.")

    def _merge_body(self) -> None:
        """Adds the chunks of a stream that was read as bytes; one that is cut off is left out."""
        for line in b"".join(self._body or ()).splitlines():
            _, found, data = line.partition(b"data:")
            if not found or data.strip() == b"[DONE]":
                continue
            try:
                chunk = json.loads(data)
            except ValueError:
                break
            self._chunks += 1
            self._merge(chunk)
        self._body = None

    def _complete(self) -> None:
        try:
            self._end(self._stream_attributes(), self._response())
        except Exception:
            logger.exception("A streamed chat completion could not be recorded.")

    def _take(self, chunk: Any) -> None:
        """Adds a chunk to the response that the stream amounts to."""
        try:
            self._last_chunk = time.time()
            self._first_chunk = self._first_chunk or self._last_chunk
            self._chunks += 1
            self._merge(chunk.model_dump(mode="json", exclude_unset=True, warnings=False))
            self._strip(chunk)
        except Exception:
            logger.exception("A chunk of a chat completion could not be recorded.")

    def _merge(self, chunk: Mapping[str, Any]) -> None:
        for key in (
            "id",
            "model",
            "system_fingerprint",
            "usage",
            "prompt_token_ids",
            "prompt_filter_results",
        ):
            if chunk.get(key):
                self._assembled[key] = chunk[key]
        for part in chunk.get("choices") or ():
            index = part.get("index", 0)
            choice = self._choices.setdefault(index, {"index": index, "message": {"role": "assistant"}})
            message = choice["message"]
            delta = part.get("delta") or {}
            if delta.get("role"):
                message["role"] = delta["role"]
            if delta.get("content"):
                message["content"] = (message.get("content") or "") + delta["content"]
            for piece in delta.get("tool_calls") or ():
                calls = message.setdefault("tool_calls", [])
                position = piece.get("index", len(calls))
                while len(calls) <= position:
                    calls.append({"type": "function", "function": {"name": "", "arguments": ""}})
                call, function = calls[position], piece.get("function") or {}
                call["id"] = piece.get("id") or call.get("id")
                call["function"]["name"] += function.get("name") or ""
                call["function"]["arguments"] += function.get("arguments") or ""
            if part.get("finish_reason"):
                choice["finish_reason"] = part["finish_reason"]
            ids = _choice_token_ids(part)
            if ids is not None:
                choice.setdefault("token_ids", []).extend(ids)
            for key in ("content", "refusal"):
                entries = (part.get("logprobs") or {}).get(key)
                if entries:
                    choice.setdefault("logprobs", {}).setdefault(key, []).extend(entries)

    def _response(self) -> dict[str, Any]:
        return {**self._assembled, "choices": [self._choices[index] for index in sorted(self._choices)]}

    def _stream_attributes(self) -> dict[str, Any]:
        """What the stream has amounted to so far, and how long it took."""
        attributes = _attributes(self._request, self._response())
        if self.streamed:
            content = sum(len(choice["message"].get("content") or "") for choice in self._choices.values())
            attributes["llm.openai.stream.chunk_count"] = self._chunks
            attributes["llm.openai.stream.content_length"] = content
            if self._first_chunk is not None and self._last_chunk is not None:
                attributes["gen_ai.streaming.time_to_first_token"] = self._first_chunk - self.started
                attributes["gen_ai.streaming.time_to_generate"] = self._last_chunk - self._first_chunk
                attributes["llm.openai.stream.total_duration"] = self._last_chunk - self.started
        return attributes


# The patch


def _is_chat(options: Any) -> bool:
    return str(getattr(options, "method", "")).lower() == "post" and getattr(options, "url", None) == _PATH


def _body(options: Any) -> dict[str, Any] | None:
    if not isinstance(options.json_data, Mapping):
        return None
    return {**options.json_data, **(options.extra_json or {})}


def _extras(body: Mapping[str, Any]) -> dict[str, Any]:
    """What to ask a server that knows token ids for, beyond what the caller does."""
    extras: dict[str, Any] = {}
    if "return_token_ids" not in body:
        extras["return_token_ids"] = True
    if "logprobs" not in body:
        extras["logprobs"] = True
    return extras


def _begin(session: TraceSession, body: Mapping[str, Any], asked: frozenset[str]) -> _Call | None:
    """Starts the recording of a call, unless that itself fails."""
    try:
        return _Call(session, body, asked)
    except Exception:
        logger.exception("A chat completion can't be recorded.")
        return None


def _prepared(call: _Call, options: Any, extras: Mapping[str, Any]) -> Any:
    """A copy of the request's options with the extras, which shows us the parsed response."""
    inner: Callable[[Any], Any] | None = options.post_parser if callable(options.post_parser) else None

    def post_parser(parsed: Any) -> Any:
        parsed = call.post_parser(parsed)
        return parsed if inner is None else inner(parsed)

    update: dict[str, Any] = {"post_parser": post_parser}
    if extras:
        update["extra_json"] = {**(options.extra_json or {}), **extras}
    return options.model_copy(update=update)


def _refused(error: BaseException) -> bool:
    """Whether the server may have refused the extras rather than the request."""
    return isinstance(error, (openai.BadRequestError, openai.UnprocessableEntityError))


def _base_url(client: Any) -> str:
    return str(client.base_url).rstrip("/")


def _patched(original: Callable[..., Any]) -> Callable[..., Any]:
    def request(self: Any, cast_to: Any, options: Any, *args: Any, **kwargs: Any) -> Any:
        session = current_session()
        body = _body(options) if session is not None and _is_chat(options) else None
        if session is None or body is None:
            return original(self, cast_to, options, *args, **kwargs)
        base_url = _base_url(self)
        extras = _extras(body) if _proxied(base_url) or _probe(base_url, self.api_key) else {}
        call = _begin(session, body, frozenset(extras))
        if call is None:
            return original(self, cast_to, options, *args, **kwargs)
        try:
            with trace_api.use_span(call.span, record_exception=False, set_status_on_exception=False):
                try:
                    response = original(self, cast_to, _prepared(call, options, extras), *args, **kwargs)
                except Exception as exc:
                    if not extras or not _refused(exc):
                        raise
                    # The caller's own request may well be fine.
                    response = original(self, cast_to, _prepared(call, options, {}), *args, **kwargs)
        except BaseException as exc:
            call.fail(exc)
            raise
        call.raw(response)
        return response

    setattr(request, _MARK, original)
    return request


def _patched_async(original: Callable[..., Any]) -> Callable[..., Any]:
    async def request(self: Any, cast_to: Any, options: Any, *args: Any, **kwargs: Any) -> Any:
        session = current_session()
        body = _body(options) if session is not None and _is_chat(options) else None
        if session is None or body is None:
            return await original(self, cast_to, options, *args, **kwargs)
        base_url = _base_url(self)
        knows_token_ids = _proxied(base_url) or await _probe_async(base_url, self.api_key)
        extras = _extras(body) if knows_token_ids else {}
        call = _begin(session, body, frozenset(extras))
        if call is None:
            return await original(self, cast_to, options, *args, **kwargs)
        try:
            with trace_api.use_span(call.span, record_exception=False, set_status_on_exception=False):
                try:
                    response = await original(
                        self, cast_to, _prepared(call, options, extras), *args, **kwargs
                    )
                except Exception as exc:
                    if not extras or not _refused(exc):
                        raise
                    # The caller's own request may well be fine.
                    response = await original(self, cast_to, _prepared(call, options, {}), *args, **kwargs)
        except BaseException as exc:
            call.fail(exc)
            raise
        call.raw(response)
        return response

    setattr(request, _MARK, original)
    return request


async def _probe_async(base_url: str, api_key: str) -> bool:
    known = _known(base_url)
    if known is not None:
        return known
    import asyncio

    return await asyncio.get_running_loop().run_in_executor(None, _probe, base_url, api_key)


def instrument() -> None:
    """Patches the SDK's two kinds of clients."""
    for client, patched in ((openai.OpenAI, _patched), (openai.AsyncOpenAI, _patched_async)):
        if not hasattr(client.request, _MARK):
            client.request = patched(client.request)  # type: ignore[method-assign]


def uninstrument() -> None:
    """Leaves the SDK as it was, unless somebody else has patched on top of us since."""
    for client in (openai.OpenAI, openai.AsyncOpenAI):
        if hasattr(client.__dict__.get("request"), _MARK):
            # `request` is inherited; ours was set on the class itself.
            del client.request
