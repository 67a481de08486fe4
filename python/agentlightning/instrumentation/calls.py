"""One call of a model on its way into a span, seen where it leaves the process: as an HTTP request.

Whatever SDK or framework makes the call, it ends in one of a few HTTP clients, and there it is recorded,
once. What stands between adds to it: an SDK's own `request` (`logical_call`) says that several requests are
tries at one call, and frameworks have spans of their own around it.

Whatever goes wrong in here is our own fault and must not become the agent's.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from urllib.parse import urlsplit

from opentelemetry import trace as trace_api

from agentlightning import _core
from agentlightning.instrumentation import asking
from agentlightning.instrumentation.attributes import as_json, request_attributes, response_attributes
from agentlightning.instrumentation.dialects import Dialect, dialect_of
from agentlightning.tracer.otel import TraceSession, current_session

logger = logging.getLogger(__name__)

SPAN_NAME = "openai.chat.completion"
_TRACER_NAME = "agentlightning.instrumentation"
_MAX_ERROR_BYTES = 4096
# How the path of any dialect ends: what most requests are sorted out by.
_ROUTES = (
    "/completions",
    "/responses",
    "/messages",
    ":generateContent",
    ":streamGenerateContent",
    "/api/chat",
)

# What an SDK has set around its requests.
_logical: ContextVar[_LogicalCall | None] = ContextVar("agentlightning_logical_call", default=None)
# Whether we are inside of a request that is recorded: clients are built on top of each other.
_inside: ContextVar[bool] = ContextVar("agentlightning_inside_request", default=False)


class Call:
    """A call and its span, from the first request to the last byte of the response."""

    def __init__(self, session: TraceSession, dialect: Dialect, request: dict[str, Any], url: str) -> None:
        self.session = session
        self.dialect = dialect
        self.request = request
        self.started = time.time()
        self._lock = threading.Lock()
        self._done = False
        parts = urlsplit(url)
        attributes = request_attributes(request)
        attributes["gen_ai.system"] = dialect.system
        attributes["gen_ai.provider.name"] = dialect.provider
        attributes["gen_ai.operation.name"] = dialect.operation
        attributes["gen_ai.request.type"] = dialect.request_type
        attributes["server.address"] = parts.hostname or ""
        if parts.port is not None:
            attributes["server.port"] = parts.port
        self._tracer = session.tracer_provider.get_tracer(_TRACER_NAME)
        self.span = self._tracer.start_span(SPAN_NAME, attributes=attributes)
        session.begin_call(self.span, attributes)

    @property
    def is_done(self) -> bool:
        """Whether the span has ended."""
        return self._done

    def end(
        self,
        attributes: Mapping[str, Any],
        response: Mapping[str, Any],
        *,
        error: BaseException | str | None = None,
        end_time: float | None = None,
    ) -> None:
        """Ends the span, the first time, with what the response amounts to."""
        with self._lock:
            if self._done:
                return
            self._done = True
        try:
            answered = {**response_attributes(response), **attributes}
            self.span.set_attributes(answered)
            self.session.end_call(self.span, answered)
            if error is None:
                self.span.set_status(trace_api.StatusCode.OK)
            else:
                if isinstance(error, BaseException):
                    self.span.record_exception(error)
                    self.span.set_attribute("error.type", type(error).__qualname__)
                self.span.set_status(trace_api.StatusCode.ERROR, str(error))
            self._tool_calls(response)
            if self.dialect.has_memory and response.get("id"):
                self.session.remember(str(response["id"]), _conversation(self.request, response))
        except Exception:
            logger.exception("A model call could not be recorded whole.")
        finally:
            self.span.end(end_time=None if end_time is None else int(end_time * 1e9))

    def _tool_calls(self, response: Mapping[str, Any]) -> None:
        """A child span for each tool call that the model asks for."""
        parent = trace_api.set_span_in_context(self.span)
        if not any(
            (choice.get("message") or {}).get("tool_calls") for choice in response.get("choices") or ()
        ):
            return
        for name, attributes in json.loads(_core.tool_call_attributes(as_json(response))):
            span = self._tracer.start_span(name, context=parent, attributes=attributes)
            span.set_status(trace_api.StatusCode.OK)
            span.end()


def _conversation(request: Mapping[str, Any], response: Mapping[str, Any]) -> list[Any]:
    """The messages up to and with the response, to which the next request may only refer."""
    said = [choice.get("message") for choice in response.get("choices") or ()][:1]
    return [*(request.get("messages") or ()), *said]


class _LogicalCall:
    """What an SDK does for one call: requests, until one succeeds or it gives up."""

    def __init__(self) -> None:
        self.call: Call | None = None
        # How the last try went, if there will be another.
        self.failure: str | None = None


@contextmanager
def logical_call() -> Iterator[None]:
    """Takes the requests inside for tries at one call; the exception that leaves is how the call ended."""
    scope = _LogicalCall()
    token = _logical.set(scope)
    try:
        yield
    except BaseException as exc:
        if scope.call is not None:
            scope.call.end({}, {}, error=exc)
        raise
    finally:
        _logical.reset(token)


class Exchange:
    """One HTTP request of a call, and its response.

    Goes through `opened`, then `watch` or `watch_async`; where these don't fit, `feed` for each piece of the
    decoded body, then `closed`; or `fail`, or `abandon` when nobody reads on.
    """

    def __init__(
        self,
        call: Call,
        body: Mapping[str, Any],
        extras: Mapping[str, Any],
        *,
        streamed: bool,
        shown: bool,
    ) -> None:
        self.call = call
        self.streamed = streamed
        # What is to be taken out of the response again, unless the agent would have got it without us.
        self.asked = frozenset() if shown else frozenset(extras)
        self.body = json.dumps({**body, **extras}, ensure_ascii=False).encode() if extras else None
        """What to send instead of the agent's own body; None for that."""
        self._scope = _logical.get()
        self._status = 200
        self._is_stream = False
        self._is_sse = False
        self._assembly = call.dialect.assembly()
        # What has been read of a response in one piece, and of an event that is not complete yet.
        self._parts: list[bytes] = []
        self._buffer = b""
        self._events = 0
        self._first: float | None = None
        self._last: float | None = None
        call.session.add_closer(self.abandon)

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Around the sending of the request: what happens inside belongs to the span, and is not recorded
        again."""
        token = _inside.set(True)
        try:
            with trace_api.use_span(self.call.span, record_exception=False, set_status_on_exception=False):
                yield
        except BaseException as exc:
            self.fail(exc)
            raise
        finally:
            _inside.reset(token)

    def is_refused(self, status: int) -> bool:
        """Whether the server may have refused what we ask for, and the agent's own request is to be sent."""
        return self.body is not None and status in asking.REFUSALS

    def ask_nothing(self) -> None:
        """Says that the agent's own request is sent after all."""
        self.body = None
        self.asked = frozenset()

    def opened(self, status: int, content_type: str) -> None:
        """Takes the head of the response."""
        self._status = status
        self._is_sse = "event-stream" in content_type
        self._is_stream = status < 400 and (self._is_sse or "ndjson" in content_type)

    def watch(self, parts: Iterator[bytes]) -> Iterator[bytes]:
        """The pieces of the decoded body, on their way to whoever reads them."""
        try:
            for part in parts:
                if piece := self.feed(part):
                    yield piece
            if piece := self.closed():
                yield piece
        except GeneratorExit:
            self.abandon()
            raise
        except BaseException as exc:
            self.fail(exc)
            raise
        finally:
            if isinstance(parts, Generator):
                parts.close()

    async def watch_async(self, parts: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """`watch`, for async bodies."""
        try:
            async for part in parts:
                if piece := self.feed(part):
                    yield piece
            if piece := self.closed():
                yield piece
        except GeneratorExit:
            self.abandon()
            raise
        except BaseException as exc:
            self.fail(exc)
            raise
        finally:
            if isinstance(parts, AsyncGenerator):
                await parts.aclose()

    def feed(self, data: bytes) -> bytes:
        """Takes a piece of the body, and returns the piece that the agent gets for it."""
        if not data or (self.call.is_done and not self.asked):
            return data
        self._last = time.time()
        self._first = self._first or self._last
        if not self._is_stream:
            self._parts.append(data)
            return b"" if self.asked and self._status < 400 else data
        self._buffer += data
        events = list(self._complete_events())
        taken = [self._take(event) for event in events]
        return b"".join(taken) if self.asked else data

    def closed(self) -> bytes:
        """Takes the end of the body, and returns what the agent still has to get."""
        if self.call.is_done and not self.asked:
            return b""
        if self._status >= 400:
            self._refused()
            return b""
        if not self._is_stream:
            rest = self._whole()
        else:
            # The last event may lack the empty line after it.
            rest = self._take(self._buffer) if self._buffer.strip() else self._buffer
            self._end(self._response)
        return rest if self.asked else b""

    def fail(self, error: BaseException) -> None:
        """Ends with the error that the agent gets; a try of an SDK that may go on only leaves a mark."""
        if not self._goes_on(type(error).__name__):
            self._end(self._response, error=error)

    def abandon(self) -> None:
        """Ends with what has been read when nobody reads on."""
        if self.call.is_done:
            return
        if self._status >= 400:
            self._refused()
            return
        self._end(self._response, attributes={"llm.openai.stream.complete": False}, end_time=self._last)

    # Inside

    def _goes_on(self, failure: str) -> bool:
        """Whether an SDK is around that will say how the call ends, after this try has failed."""
        if self._scope is None or _logical.get() is not self._scope or self._events:
            return False
        self._scope.failure = failure
        return True

    def _refused(self) -> None:
        """Ends with the server's refusal, unless an SDK is around that will say what comes of it."""
        text = b"".join(self._parts)[:_MAX_ERROR_BYTES].decode(errors="replace")
        message = f"HTTP {self._status}: {text}"
        if not self._goes_on(message):
            self._end(dict, attributes={"error.type": str(self._status)}, error=message)

    def _complete_events(self) -> Iterator[bytes]:
        """The events that are complete now, with what ends them."""
        while True:
            if self._is_sse:
                marks = [(self._buffer.find(mark), len(mark)) for mark in (b"\n\n", b"\r\n\r\n")]
                place, length = min((mark for mark in marks if mark[0] >= 0), default=(-1, 0))
            else:
                place, length = self._buffer.find(b"\n"), 1
            if place < 0:
                return
            yield self._buffer[: place + length]
            self._buffer = self._buffer[place + length :]

    def _take(self, event: bytes) -> bytes:
        """Records an event; returns it without what only we have asked for."""
        data = event.strip()
        if self._is_sse:
            lines = event.splitlines()
            data = b"\n".join(line[5:].strip() for line in lines if line.startswith(b"data:"))
        if data == b"[DONE]":
            # SDKs read no further.
            self._end(self._response)
            return event
        try:
            payload = json.loads(data)
        except (ValueError, RecursionError):
            return event
        if not isinstance(payload, dict):
            return event
        self._record_event(payload)
        if not self.asked:
            return event
        stripped = self._stripped(data)
        if stripped is None:
            return event
        if not self._is_sse:
            return stripped + b"\n"
        others = [line for line in event.splitlines() if line and not line.startswith(b"data:")]
        return b"\n".join([*others, b"data: " + stripped]) + b"\n\n"

    def _record_event(self, payload: Mapping[str, Any]) -> None:
        self._events += 1
        try:
            self._assembly.add(payload)
            if self.call.dialect.is_last(payload):
                self._end(self._response)
        except Exception:
            logger.exception("A piece of a model's response could not be recorded.")

    def _whole(self) -> bytes:
        """Records a response in one piece; returns it without what only we have asked for."""
        body = b"".join(self._parts)
        try:
            payload = json.loads(body)
        except (ValueError, RecursionError):
            payload = None
        if isinstance(payload, list):
            # A stream as one array, as Google's server has it.
            for item in payload:
                if isinstance(item, dict):
                    self._record_event(item)
            self._end(self._response)
        elif isinstance(payload, dict):
            self._end(lambda: self.call.dialect.response(payload))
        else:
            self._end(dict, error="the response is no JSON")
        return (self._stripped(body) if self.asked else None) or body

    def _stripped(self, data: bytes) -> bytes | None:
        """A payload without what only we have asked for; None where nothing of it is there."""
        try:
            # Read anew: what has been recorded may share parts with what was read for that.
            payload = json.loads(data)
            if not isinstance(payload, dict) or not self.call.dialect.strip(payload, self.asked):
                return None
            return json.dumps(payload, ensure_ascii=False).encode()
        except Exception:
            logger.exception("A model's response has more in it than the agent has asked for.")
            return None

    def _response(self) -> dict[str, Any]:
        return self.call.dialect.response(self._assembly.whole()) if self._events else {}

    def _end(
        self,
        read: Callable[[], Mapping[str, Any]],
        *,
        attributes: Mapping[str, Any] | None = None,
        error: BaseException | str | None = None,
        end_time: float | None = None,
    ) -> None:
        """Ends the call with the response that `read` reads, in the chat route's form."""
        self.call.session.remove_closer(self.abandon)
        if self.call.is_done:
            return
        try:
            response = read()
            more = {**self._stream_attributes(response), **(attributes or {})}
        except Exception:
            logger.exception("A model's response could not be recorded.")
            response, more = {}, dict(attributes or {})
        self.call.end(more, response, error=error, end_time=end_time)

    def _stream_attributes(self, response: Mapping[str, Any]) -> dict[str, Any]:
        """How long a stream took, and how much it was."""
        if not self.streamed:
            return {}
        contents = [(choice.get("message") or {}).get("content") for choice in response.get("choices") or ()]
        attributes: dict[str, Any] = {
            "llm.openai.stream.chunk_count": self._events,
            "llm.openai.stream.content_length": sum(len(text) for text in contents if isinstance(text, str)),
        }
        if self._first is not None and self._last is not None:
            attributes["gen_ai.streaming.time_to_first_token"] = self._first - self.call.started
            attributes["gen_ai.response.time_to_first_chunk"] = self._first - self.call.started
            attributes["gen_ai.streaming.time_to_generate"] = self._last - self._first
            attributes["llm.openai.stream.total_duration"] = self._last - self.call.started
        return attributes


class Candidate:
    """A request that is a call of a model, before anything has been done about it."""

    def __init__(
        self,
        session: TraceSession,
        dialect: Dialect,
        url: str,
        body: dict[str, Any],
        headers: Mapping[str, str],
    ) -> None:
        self.session = session
        self.dialect = dialect
        self.url = url
        self.body = body
        self.headers = headers
        self.base_url = dialect.base_of(url)
        self.model = str(body.get("model", ""))

    def knows_token_ids(self) -> bool | None:
        """Whether to ask the server for token ids; None when it is to be probed for that first."""
        try:
            return asking.known(self.base_url, self.model) if self.dialect.extras(self.body) else False
        except Exception:
            logger.exception("It can't be told whether %s knows token ids.", self.base_url)
            return False

    def begin(self, knows_token_ids: bool) -> Exchange | None:
        """Starts the recording, unless that itself fails."""
        try:
            path = urlsplit(self.url).path
            scope = _logical.get()
            call = scope.call if scope is not None else None
            if call is None or call.is_done:
                request = self.dialect.request(path, self.body)
                earlier = self.session.recall(str(request.get("previous_response_id") or ""))
                if earlier:
                    request["messages"] = [*earlier, *request["messages"]]
                call = Call(self.session, self.dialect, request, self.url)
                if scope is not None:
                    scope.call = call
            elif scope is not None and scope.failure is not None:
                call.span.add_event("retry", {"error.message": scope.failure})
                scope.failure = None
            extras = self.dialect.extras(self.body) if knows_token_ids else {}
            streamed = self.dialect.is_streamed(path, self.body)
            shown = asking.names_attempt(self.base_url)
            return Exchange(call, self.body, extras, streamed=streamed, shown=shown)
        except Exception:
            logger.exception("A model call can't be recorded.")
            return None


def candidate(method: str, url: str, content: bytes | None, headers: Mapping[str, str]) -> Candidate | None:
    """What is to be recorded of a request: nothing outside of a trace, or unless it is a call of a model.

    `headers` are looked up in lower case.
    """
    session = current_session()
    if session is None or _inside.get() or method != "POST" or not content:
        return None
    try:
        path = urlsplit(url).path
        if not path.endswith(_ROUTES):
            return None
        body = json.loads(content)
        dialect = dialect_of(path, body) if isinstance(body, dict) else None
        return None if dialect is None else Candidate(session, dialect, url, body, headers)
    except Exception:
        # No JSON: not a call that we could know.
        return None
