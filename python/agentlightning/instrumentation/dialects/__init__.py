"""How the model servers' routes write a call: each dialect is read into OpenAI's chat form, which spans are
made of.

A dialect is one file. A new one is added to `DIALECTS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentlightning.instrumentation.dialects import chat, completions, gemini, messages, ollama, responses
from agentlightning.instrumentation.dialects.base import Assembly, Dialect

__all__ = ["DIALECTS", "Assembly", "Dialect", "dialect_of"]

DIALECTS: tuple[Dialect, ...] = (
    chat.Chat(),
    completions.Completions(),
    responses.Responses(),
    messages.Messages(),
    gemini.Gemini(),
    ollama.Ollama(),
)
"""Every dialect that is recorded. The first that knows a request's path has it."""


def dialect_of(path: str, body: Mapping[str, Any]) -> Dialect | None:
    """The dialect of a POST request with this path and body; None for anything but a call of a model."""
    for dialect in DIALECTS:
        if dialect.knows(path) and dialect.is_call(body):
            return dialect
    return None
