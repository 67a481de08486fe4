"""Records calls of models made through requests."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

from agentlightning.instrumentation import asking
from agentlightning.instrumentation.calls import Exchange, candidate
from agentlightning.instrumentation.patching import Patches

_patches = Patches()


def instrument() -> None:
    """Patches `HTTPAdapter.send`, which sessions and the functions of the module send everything through."""
    module = sys.modules.get("requests.adapters")
    if module is not None:
        _patches.replace(module.HTTPAdapter, "send", _send)


def uninstrument() -> None:
    """Leaves the module as it was."""
    _patches.undo()


def _send(original: Callable[..., Any]) -> Callable[..., Any]:
    def send(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        content = request.body.encode() if isinstance(request.body, str) else request.body
        content = content if isinstance(content, bytes) else None
        found = candidate(request.method or "", request.url or "", content, request.headers)
        if found is None:
            return original(self, request, *args, **kwargs)
        knows = found.knows_token_ids()
        if knows is None:
            knows = asking.probe(found.base_url, found.headers)
        exchange = found.begin(knows)
        if exchange is None:
            return original(self, request, *args, **kwargs)
        with exchange.sending():
            response = original(self, _outgoing(request, exchange), *args, **kwargs)
            if exchange.is_refused(response.status_code):
                response.close()
                refusal = response.status_code
                exchange.ask_nothing()
                response = original(self, request, *args, **kwargs)
                if response.ok:
                    asking.refused(found.base_url, found.model, refusal)
        response.request = request
        _watch(response, exchange)
        return response

    return send


def _outgoing(request: Any, exchange: Exchange) -> Any:
    if exchange.body is None:
        return request
    copy = request.copy()
    copy.body = exchange.body
    copy.headers["Content-Length"] = str(len(exchange.body))
    return copy


def _watch(response: Any, exchange: Exchange) -> None:
    """Looks over the shoulder of whoever reads the body, which comes through `iter_content`."""
    exchange.opened(response.status_code, response.headers.get("content-type", ""))
    iter_content = response.iter_content

    def watched(chunk_size: int | None = 1, decode_unicode: bool = False) -> Iterator[Any]:
        if response._content_consumed:
            yield from iter_content(chunk_size, decode_unicode)
            return
        yield from exchange.watch(iter_content(chunk_size, False))
        response.__dict__.pop("iter_content", None)

    def decoded(chunk_size: int | None = 1, decode_unicode: bool = False) -> Iterator[Any]:
        pieces = watched(chunk_size, decode_unicode)
        if not decode_unicode or response.encoding is None or response._content_consumed:
            return pieces
        return _decode(pieces, response.encoding)

    response.iter_content = decoded


def _decode(pieces: Iterator[bytes], encoding: str) -> Iterator[str]:
    import codecs

    decoder = codecs.getincrementaldecoder(encoding)(errors="replace")
    for piece in pieces:
        if text := decoder.decode(piece):
            yield text
    if text := decoder.decode(b"", final=True):
        yield text
