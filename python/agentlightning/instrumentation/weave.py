"""0.3's way to have Weave's ops recorded, which is that of `WeaveTracer` while it is set up."""

from __future__ import annotations

from typing import Any, ClassVar

from agentlightning.former import FormerPart

__all__ = ["InMemoryWeaveTraceServer", "instrument_weave", "uninstrument_weave"]


def instrument_weave(server: Any = None) -> None:
    """Gives Weave a client that records ops into the trace that is open, until `uninstrument_weave` has been
    called as often; a client that you have given it stays.

    Raises:
        TypeError: for a `server`, which the client never asks.
        ImportError: without the package `weave`.
    """
    if server is not None:
        raise TypeError(
            f"server must be left out, not {type(server).__name__}: Weave is given a client that needs none"
        )
    _client().initialize("agl/weave")


def uninstrument_weave() -> None:
    """Takes the client away again."""
    _client().forget()


def _client() -> Any:
    try:
        import weave  # noqa: F401
    except ImportError as error:
        raise ImportError("recording Weave's ops needs the package weave: pip install weave") from error
    from agentlightning.instrumentation import weave_client

    return weave_client


class InMemoryWeaveTraceServer(FormerPart):
    """What stood in for Weave's server: Weave is given a client that needs none."""

    instead: ClassVar[str] = (
        "instrument_weave() gives Weave a client that records into traces and needs no server"
    )
