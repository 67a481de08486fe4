"""Instrumentations that others keep, OpenInference's and OpenLLMetry's, of packages that we have none for.

Those that are installed are started with our provider, and stopped with us, unless the user has started them.
"""

from __future__ import annotations

import logging
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NamedTuple

from agentlightning.tracer.otel import shared_provider

logger = logging.getLogger(__name__)

# By the names of their entry points: the module that is recorded, where it has another name.
_OPENINFERENCE = {
    "agno": "agno",
    "beeai": "beeai_framework",
    "bedrock": "boto3",
    "guardrails": "guardrails",
    "haystack": "haystack",
    "instructor": "instructor",
    "mistralai": "mistralai",
    "portkey": "portkey_ai",
    "promptflow": "promptflow",
    "strands_agents": "strands",
    "vertexai": "vertexai",
}
_OPENLLMETRY = {
    "aleph_alpha": "aleph_alpha_client",
    "bedrock": "boto3",
    "cohere": "cohere",
    "haystack": "haystack",
    "mistralai": "mistralai",
    "ollama": "ollama",
    "replicate": "replicate",
    "sagemaker": "boto3",
    "transformers": "transformers",
    "vertexai": "vertexai",
    "watsonx": "ibm_watsonx_ai",
}
_GROUPS = {"openinference_instrumentor": _OPENINFERENCE, "opentelemetry_instrumentor": _OPENLLMETRY}


class Other(NamedTuple):
    """An instrumentation that is installed."""

    entry: EntryPoint
    module: str
    """The module that it records."""

    @property
    def distribution(self) -> str:
        """Its name on PyPI."""
        return "" if self.entry.dist is None else str(self.entry.dist.name)


_started: list[Any] = []


def find() -> list[Other]:
    """What is installed of them, one for each module."""
    found: dict[str, Other] = {}
    for group, known in _GROUPS.items():
        for entry in entry_points(group=group):
            if entry.name in known:
                found.setdefault(known[entry.name], Other(entry, known[entry.name]))
    return list(found.values())


def start(other: Other) -> None:
    """Starts one, unless it has been started."""
    instrumentor = other.entry.load()()
    if getattr(instrumentor, "is_instrumented_by_opentelemetry", False):
        return
    instrumentor.instrument(tracer_provider=shared_provider())
    _started.append(instrumentor)


def stop() -> None:
    """Stops those that we have started."""
    while _started:
        instrumentor = _started.pop()
        try:
            instrumentor.uninstrument()
        except Exception:
            logger.exception("%s could not be stopped.", type(instrumentor).__name__)
