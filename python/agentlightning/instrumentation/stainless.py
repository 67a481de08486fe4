"""What the SDKs of OpenAI and Anthropic have in common: clients whose `request` makes a call, with its
retries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from agentlightning.instrumentation.calls import logical_call
from agentlightning.tracer.otel import current_session


def request(original: Callable[..., Any]) -> Callable[..., Any]:
    """A synchronous client's `request`, as one call."""

    def request(self: Any, *args: Any, **kwargs: Any) -> Any:
        if current_session() is None:
            return original(self, *args, **kwargs)
        with logical_call():
            return original(self, *args, **kwargs)

    return request


def request_async(original: Callable[..., Any]) -> Callable[..., Any]:
    """An asynchronous client's `request`, as one call."""

    async def request(self: Any, *args: Any, **kwargs: Any) -> Any:
        if current_session() is None:
            return await original(self, *args, **kwargs)
        with logical_call():
            return await original(self, *args, **kwargs)

    return request
