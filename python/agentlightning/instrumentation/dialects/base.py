"""What a dialect is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any


class Assembly(ABC):
    """A streamed response on its way to being whole."""

    @abstractmethod
    def add(self, event: Mapping[str, Any]) -> None:
        """Takes the next event in."""

    @abstractmethod
    def whole(self) -> dict[str, Any]:
        """The response that the events amount to so far, as the route answers it without streaming."""


class Dialect(ABC):
    """One way to write a call of a model: its routes, requests and responses."""

    system: str
    """`gen_ai.system`."""
    provider: str
    """`gen_ai.provider.name`."""
    operation = "chat"
    """`gen_ai.operation.name`."""
    request_type = "chat"
    """`gen_ai.request.type`."""
    has_memory = False
    """Whether a request may refer to an earlier response by its id alone."""
    route: str
    """How a path of this dialect ends."""

    def knows(self, path: str) -> bool:
        """Whether a path is one of this dialect's."""
        return path.endswith(self.route)

    def base_of(self, url: str) -> str:
        """The address of the server in a URL of this dialect: what its other routes follow."""
        return url.split("?", 1)[0].removesuffix(self.route)

    @abstractmethod
    def is_call(self, body: Mapping[str, Any]) -> bool:
        """Whether a request's body is that of a call."""

    def is_streamed(self, path: str, body: Mapping[str, Any]) -> bool:
        """Whether the response is asked for in pieces."""
        return bool(body.get("stream"))

    def extras(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """What to ask a server that knows token ids for, beyond what the caller does."""
        return {}

    @abstractmethod
    def request(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The request of OpenAI's chat route that says the same."""

    @abstractmethod
    def response(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """The response of OpenAI's chat route that says the same."""

    @abstractmethod
    def assembly(self) -> Assembly:
        """What puts a streamed response together."""

    def is_last(self, event: Mapping[str, Any]) -> bool:
        """Whether an event of a stream is the last that says anything."""
        return False

    def strip(self, payload: dict[str, Any], asked: frozenset[str]) -> bool:
        """Takes out of a response, or an event of one, what only we have asked for; whether there was
        anything."""
        return False


def choices_of(payload: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The choices of a response, without what is none."""
    return [choice for choice in payload.get("choices") or () if isinstance(choice, dict)]


def drop(payload: dict[str, Any], *names: str) -> bool:
    """Removes keys; whether one was there."""
    there = [name for name in names if name in payload]
    for name in there:
        del payload[name]
    return bool(there)
