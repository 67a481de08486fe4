"""Records calls of models made through httpx, and through httpx2, which has the same clients: those of the
SDKs of OpenAI and Anthropic, of LiteLLM and most frameworks, and the agent's own."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from typing import Any

from agentlightning.instrumentation import asking
from agentlightning.instrumentation.calls import Candidate, Exchange, candidate
from agentlightning.instrumentation.patching import Patches

_MODULES = ("httpx", "httpx2")
_patches = Patches()


def instrument() -> None:
    """Patches `Client.send` and `AsyncClient.send` of both modules, where they are loaded."""
    for name in _MODULES:
        module = sys.modules.get(name)
        if module is not None:
            _patches.replace(module.Client, "send", _send)
            _patches.replace(module.AsyncClient, "send", _send_async)


def uninstrument() -> None:
    """Leaves both modules as they were."""
    _patches.undo()


def _candidate(request: Any) -> Candidate | None:
    # Most requests are sorted out by their path alone.
    return candidate(request.method, str(request.url), getattr(request, "_content", None), request.headers)


def _send(original: Callable[..., Any]) -> Callable[..., Any]:
    def send(self: Any, request: Any, *, stream: bool = False, **kwargs: Any) -> Any:
        found = _candidate(request)
        if found is None:
            return original(self, request, stream=stream, **kwargs)
        knows = found.knows_token_ids()
        if knows is None:
            knows = asking.probe(found.base_url, found.headers)
        exchange = found.begin(knows)
        if exchange is None:
            return original(self, request, stream=stream, **kwargs)
        with exchange.sending():
            response = original(self, _outgoing(request, exchange), stream=True, **kwargs)
            if exchange.is_refused(response.status_code):
                response.close()
                refusal = response.status_code
                exchange.ask_nothing()
                response = original(self, request, stream=True, **kwargs)
                if response.is_success:
                    asking.refused(found.base_url, found.model, refusal)
        response.request = request
        _watch(response, exchange)
        if not stream:
            try:
                response.read()
            except BaseException:
                response.close()
                raise
        return response

    return send


def _send_async(original: Callable[..., Any]) -> Callable[..., Any]:
    async def send(self: Any, request: Any, *, stream: bool = False, **kwargs: Any) -> Any:
        found = _candidate(request)
        if found is None:
            return await original(self, request, stream=stream, **kwargs)
        knows = found.knows_token_ids()
        if knows is None:
            knows = await asking.probe_async(found.base_url, found.headers)
        exchange = found.begin(knows)
        if exchange is None:
            return await original(self, request, stream=stream, **kwargs)
        with exchange.sending():
            response = await original(self, _outgoing(request, exchange), stream=True, **kwargs)
            if exchange.is_refused(response.status_code):
                await response.aclose()
                refusal = response.status_code
                exchange.ask_nothing()
                response = await original(self, request, stream=True, **kwargs)
                if response.is_success:
                    asking.refused(found.base_url, found.model, refusal)
        response.request = request
        _watch(response, exchange)
        if not stream:
            try:
                await response.aread()
            except BaseException:
                await response.aclose()
                raise
        return response

    return send


def _outgoing(request: Any, exchange: Exchange) -> Any:
    """The request that is sent: the agent's own, or a copy that asks for more."""
    if exchange.body is None:
        return request
    headers = request.headers.copy()
    headers.pop("content-length", None)
    return type(request)(
        request.method, request.url, headers=headers, content=exchange.body, extensions=request.extensions
    )


def _watch(response: Any, exchange: Exchange) -> None:
    """Looks over the shoulder of whoever reads the body: every way of reading it decoded comes through
    `iter_bytes`, or `aiter_bytes`."""
    exchange.opened(response.status_code, response.headers.get("content-type", ""))
    if response.is_closed:
        # Read already, by one of the agent's event hooks.
        response._content = exchange.feed(response.content) + exchange.closed()
        return
    iter_bytes, aiter_bytes = response.iter_bytes, response.aiter_bytes

    def release() -> None:
        for name in ("iter_bytes", "aiter_bytes"):
            response.__dict__.pop(name, None)

    def watched(chunk_size: int | None = None) -> Iterator[bytes]:
        if hasattr(response, "_content"):
            yield from iter_bytes(chunk_size)
            return
        yield from exchange.watch(iter_bytes(chunk_size))
        release()

    async def watched_async(chunk_size: int | None = None) -> AsyncIterator[bytes]:
        watched = aiter_bytes(chunk_size)
        watched = watched if hasattr(response, "_content") else exchange.watch_async(watched)
        async with aclosing(watched):
            async for part in watched:
                yield part
        release()

    response.iter_bytes, response.aiter_bytes = watched, watched_async
