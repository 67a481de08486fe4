"""Calls of models as messages of OpenAI's chat API."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypedDict

from agentlightning.adapter.base import TraceAdapter
from agentlightning.adapter.triplet import _raising, as_spans
from agentlightning.types import Span

__all__ = ["OpenAIMessages", "TraceToMessages"]


class OpenAIMessages(TypedDict):
    """The messages of a call, and the tools that the model might call."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None


class TraceToMessages(TraceAdapter[list[OpenAIMessages]]):
    """Makes the messages of every call of a trace: prompt and answers, with the tools that they call."""

    def adapt(self, source: Sequence[Span], /) -> list[OpenAIMessages]:
        """The messages of every span with anything of OpenTelemetry's groups `gen_ai.*`, in the order given.

        Raises:
            ValueError: for a group that is not what it has to be.
            KeyError: for a message without a role.
        """
        from agentlightning import _core
        from agentlightning.store.native import encode_spans

        found: list[OpenAIMessages] = json.loads(
            _raising(_core.trace_to_messages, encode_spans(as_spans(source)))
        )
        return found
