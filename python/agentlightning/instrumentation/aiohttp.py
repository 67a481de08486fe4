"""Records calls of models made through aiohttp.

Nothing is asked for here beyond what the agent asks for: what a server adds could not be taken out again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from agentlightning.instrumentation.calls import Exchange, candidate
from agentlightning.instrumentation.patching import Patches

_patches = Patches()


def instrument() -> None:
    """Patches `ClientSession._request`, which every method of a session sends its request through."""
    _patches.replace(sys.modules["aiohttp"].ClientSession, "_request", _request)


def uninstrument() -> None:
    """Leaves the module as it was."""
    _patches.undo()


def _request(original: Callable[..., Any]) -> Callable[..., Any]:
    async def _request(self: Any, method: str, str_or_url: Any, **kwargs: Any) -> Any:
        found = candidate(method.upper(), _url(self, str_or_url), _content(kwargs), {})
        exchange = found.begin(False) if found is not None else None
        if exchange is None:
            return await original(self, method, str_or_url, **kwargs)
        with exchange.sending():
            response = await original(self, method, str_or_url, **kwargs)
        _watch(response, exchange)
        return response

    return _request


def _url(session: Any, url: Any) -> str:
    base = getattr(session, "_base_url", None)
    return str(url) if base is None else f"{str(base).rstrip('/')}/{str(url).lstrip('/')}"


def _content(kwargs: dict[str, Any]) -> bytes | None:
    """The body of a request, where it is plain to see."""
    data = kwargs.get("data")
    if kwargs.get("json") is not None:
        try:
            return json.dumps(kwargs["json"]).encode()
        except (TypeError, ValueError):
            return None
    if isinstance(data, str):
        return data.encode()
    return data if isinstance(data, bytes) else None


def _watch(response: Any, exchange: Exchange) -> None:
    """Sees the body as it comes in, whether or not somebody reads it."""
    reader = response.content
    stream_reader = sys.modules["aiohttp"].StreamReader
    exchange.opened(response.status, response.headers.get("content-type", ""))
    if type(reader) is not stream_reader:
        exchange.closed()
        return

    class Watched(stream_reader):  # type: ignore[misc, valid-type]
        __slots__ = ()

        def feed_data(self, data: bytes, *args: Any, **kwargs: Any) -> Any:
            exchange.feed(bytes(data))
            return super().feed_data(data, *args, **kwargs)

        def set_exception(self, exc: Any, *args: Any, **kwargs: Any) -> Any:
            exchange.fail(exc if isinstance(exc, BaseException) else RuntimeError(str(exc)))
            return super().set_exception(exc, *args, **kwargs)

    # What came with the head of the response is there already.
    for data in list(reader._buffer):
        exchange.feed(bytes(data))
    reader.__class__ = Watched
    reader.on_eof(lambda: exchange.closed() and None)
