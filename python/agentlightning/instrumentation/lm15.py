"""Records calls of models made through lm15, the HTTP client that DSPy brings along."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from agentlightning.instrumentation import asking
from agentlightning.instrumentation.calls import Candidate, Exchange, candidate
from agentlightning.instrumentation.patching import Patches

_MODULE = "dspy._vendor.lm15.transports"
_patches = Patches()


def instrument() -> None:
    """Patches the two transports."""
    transports = sys.modules[_MODULE]
    _patches.replace(transports.StdlibTransport, "stream", _stream)
    _patches.replace(transports.StdlibAsyncTransport, "_do_stream", _stream_async)


def uninstrument() -> None:
    """Leaves the client as it was."""
    _patches.undo()


def _candidate(request: Any) -> Candidate | None:
    headers = {name.lower(): value for name, value in request.headers}
    return candidate(request.method, request.url, request.body, headers)


def _stream(original: Callable[..., Any]) -> Callable[..., Any]:
    def stream(self: Any, request: Any) -> Any:
        found = _candidate(request)
        if found is None:
            return original(self, request)
        knows = found.knows_token_ids()
        if knows is None:
            knows = asking.probe(found.base_url, found.headers)
        exchange = found.begin(knows)
        if exchange is None:
            return original(self, request)
        with exchange.sending():
            response = original(self, _outgoing(request, exchange))
            if exchange.is_refused(response.status):
                response.close()
                refusal = response.status
                exchange.ask_nothing()
                response = original(self, request)
                if response.status < 400:
                    asking.refused(found.base_url, found.model, refusal)
        exchange.opened(response.status, response.header("content-type") or "")
        response._chunks = exchange.watch(response._chunks)
        return response

    return stream


def _stream_async(original: Callable[..., Any]) -> Callable[..., Any]:
    async def stream(self: Any, request: Any) -> Any:
        found = _candidate(request)
        if found is None:
            return await original(self, request)
        knows = found.knows_token_ids()
        if knows is None:
            knows = await asking.probe_async(found.base_url, found.headers)
        exchange = found.begin(knows)
        if exchange is None:
            return await original(self, request)
        with exchange.sending():
            response = await original(self, _outgoing(request, exchange))
            if exchange.is_refused(response.status):
                await response.aclose()
                refusal = response.status
                exchange.ask_nothing()
                response = await original(self, request)
                if response.status < 400:
                    asking.refused(found.base_url, found.model, refusal)
        exchange.opened(response.status, response.header("content-type") or "")
        response._chunks = exchange.watch_async(response._chunks)
        return response

    return stream


def _outgoing(request: Any, exchange: Exchange) -> Any:
    if exchange.body is None:
        return request
    headers = [(name, value) for name, value in request.headers if name.lower() != "content-length"]
    return replace(request, body=exchange.body, headers=headers)
