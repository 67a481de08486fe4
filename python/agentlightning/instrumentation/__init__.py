"""Recording of what an agent does through other people's packages, without a change to the agent.

Calls of models are recorded as the HTTP requests that they end in (`calls`, with one file for each HTTP
client), and read by the dialect of their route (`dialects`). Frameworks add the structure around them:
agents, chains, tools, tasks, turns, one file for each. A package is patched when it is imported, or at once
where it has been, and left as it was when the last tracer that asked for it is torn down. Outside of a trace
the patches pass everything through.
"""

from __future__ import annotations

import logging
import sys
import threading
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

from agentlightning.instrumentation.importing import ImportWatch

if TYPE_CHECKING:
    from agentlightning.instrumentation.others import Other

logger = logging.getLogger(__name__)

__all__ = [
    "AGENTOPS_INSTALLED",
    "AGENTOPS_LANGCHAIN_INSTALLED",
    "LITELLM_INSTALLED",
    "VLLM_INSTALLED",
    "WEAVE_INSTALLED",
    "Finding",
    "Findings",
    "findings",
    "instrument",
    "instrument_all",
    "instrument_openai",
    "uninstrument_all",
    "uninstrument_openai",
]

_FLAGS = {
    "AGENTOPS_INSTALLED": ("agentops",),
    "AGENTOPS_LANGCHAIN_INSTALLED": ("agentops", "langchain_core"),
    "LITELLM_INSTALLED": ("litellm",),
    "VLLM_INSTALLED": ("vllm",),
    "WEAVE_INSTALLED": ("weave",),
}
"""0.3's flags, which say whether packages are installed; looked up when one is asked for."""

if TYPE_CHECKING:
    AGENTOPS_INSTALLED: bool
    AGENTOPS_LANGCHAIN_INSTALLED: bool
    LITELLM_INSTALLED: bool
    VLLM_INSTALLED: bool
    WEAVE_INSTALLED: bool
else:

    def __getattr__(name: str) -> Any:
        if name not in _FLAGS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return all(find_spec(package) is not None for package in _FLAGS[name])


class _Library(NamedTuple):
    name: str
    """What people call it."""
    modules: tuple[str, ...]
    """The modules whose imports are waited for."""
    home: str
    """Our module for it, which has `instrument()` and `uninstrument()`."""
    distribution: str
    """Its name on PyPI."""
    recorded: str
    """What is recorded of it."""


_CALLS = "model calls"
_TRIES = "what an SDK does again as one model call"
LIBRARIES = (
    _Library("httpx", ("httpx",), "httpx", "httpx", _CALLS),
    _Library("httpx2", ("httpx2",), "httpx", "httpx2", _CALLS),
    _Library("requests", ("requests",), "requests", "requests", _CALLS),
    _Library("aiohttp", ("aiohttp",), "aiohttp", "aiohttp", _CALLS),
    _Library("lm15, in DSPy", ("dspy._vendor.lm15.transports",), "lm15", "dspy", _CALLS),
    _Library("OpenAI SDK", ("openai",), "openai", "openai", _TRIES),
    _Library("Anthropic SDK", ("anthropic",), "anthropic", "anthropic", _TRIES),
    _Library(
        "LangChain, LangGraph",
        ("langchain_core",),
        "langchain",
        "langchain-core",
        "chains, agents, nodes, tools, retrievers",
    ),
    _Library(
        "OpenAI Agents SDK",
        # Many a project has a package `agents` of its own.
        ("agents.tracing",),
        "openai_agents",
        "openai-agents",
        "agents, turns, tools, handoffs, guardrails",
    ),
    _Library(
        "AutoGen",
        ("autogen_agentchat.agents", "autogen_agentchat.teams"),
        "autogen_agentchat",
        "autogen-agentchat",
        "agents, teams, tools",
    ),
    _Library(
        "AutoGen 0.2",
        ("autogen.agentchat.conversable_agent", "autogen.agentchat.groupchat"),
        "autogen",
        "pyautogen",
        "chats, agents, tools, group chats",
    ),
    _Library("AG2", ("ag2.agent",), "ag2", "ag2", "agents, tools, by its own instrumentation"),
    _Library(
        "Pydantic AI",
        ("pydantic_ai.agent",),
        "pydantic_ai",
        "pydantic-ai-slim",
        "agents, model requests, tools, by its own instrumentation",
    ),
    _Library(
        "Google ADK",
        ("google.adk.agents",),
        "google_adk",
        "google-adk",
        "agents, tools, by its own instrumentation",
    ),
    _Library("CrewAI", ("crewai",), "crewai", "crewai", "crews, tasks, agents, tools, flows"),
    _Library("smolagents", ("smolagents",), "smolagents", "smolagents", "agents, steps, tools"),
    _Library("DSPy", ("dspy",), "dspy", "dspy", "modules, tools"),
    _Library(
        "LlamaIndex",
        ("llama_index_instrumentation.dispatcher", "llama_index.core.tools"),
        "llama_index",
        "llama-index-core",
        "agents, workflow steps, tools, retrievers, engines",
    ),
)
"""Every package that we record something of."""


class Finding(NamedTuple):
    """One package, and what is done about it."""

    name: str
    version: str | None
    """None where it is not installed."""
    status: str
    """`recorded`, `waits for its import`, `not installed`, `failed: …`, or `off`."""
    recorded: str
    """What is recorded of it."""


class Findings(tuple[Finding, ...]):
    """What was found installed, and what is done about it; prints as a table."""

    def __str__(self) -> str:
        rows = [("package", "version", "status", "what is recorded")]
        rows += [(f.name, f.version or "-", f.status, f.recorded if f.version else "-") for f in self]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        return "\n".join(
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )


_lock = threading.RLock()
_users = 0
_watch = ImportWatch()
_status: dict[str, str] = {}
_others: list[Other] = []
_named: set[str] = set()


def instrument_all() -> None:
    """Has everything that we know recorded, until `uninstrument_all` has been called as often."""
    global _users
    with _lock:
        _users += 1
        if _users > 1:
            return
        from agentlightning.instrumentation import threads

        threads.instrument()
        for library in LIBRARIES:
            _status[library.name] = "waits for its import"
            for module in library.modules:
                _watch.when_imported(module, lambda library=library: _patch(library))  # type: ignore[misc]
        from agentlightning.instrumentation import others

        _others[:] = others.find()
        for other in _others:
            _status[other.distribution] = "waits for its import"
            _watch.when_imported(other.module, lambda other=other: _start(other))  # type: ignore[misc]
        if logger.isEnabledFor(logging.INFO):
            _log(findings())


def uninstrument_all() -> None:
    """Undoes one call of `instrument_all`."""
    global _users
    with _lock:
        if _users == 0:
            return
        _users -= 1
        if _users > 0:
            return
        from agentlightning.instrumentation import others, threads

        threads.uninstrument()
        _watch.forget()
        _status.clear()
        others.stop()
        for home in {library.home for library in LIBRARIES}:
            patch = sys.modules.get(f"{__name__}.{home}")
            if patch is None:
                continue
            try:
                patch.uninstrument()
            except Exception:
                logger.exception("%s could not be left as it was.", home)


def instrument_for(name: str) -> None:
    """`instrument_all` under the name of one of 0.3's instrumentations, which counts once until
    `uninstrument_for` is called with it; a further call warns."""
    with _lock:
        if name in _named:
            logger.warning("instrument_%s() has been called already; this call does nothing.", name)
            return
        instrument_all()
        _named.add(name)


def uninstrument_for(name: str) -> None:
    """Undoes `instrument_for`, if that has been called."""
    with _lock:
        if name in _named:
            _named.remove(name)
            uninstrument_all()


def instrument() -> Findings:
    """Has everything recorded that runs inside of a trace, for the rest of the process; says what was found.

    Tracers do this by themselves while they are set up. On its own it is for scripts that patch early, or
    want to know.
    """
    instrument_all()
    return findings()


def findings() -> Findings:
    """What is installed of the packages that we know, and what is done about it."""
    from agentlightning.instrumentation import others

    found = [_finding(library) for library in LIBRARIES]
    for other in _others or others.find():
        version = "" if other.entry.dist is None else other.entry.dist.version
        status = _status.get(other.distribution, "off")
        found.append(Finding(other.distribution, version, status, f"{other.module}, by this instrumentation"))
    return Findings(found)


def instrument_openai() -> None:
    """The name that `instrument_all` had when the OpenAI SDK was all there was."""
    instrument_all()


def uninstrument_openai() -> None:
    """The name that `uninstrument_all` had when the OpenAI SDK was all there was."""
    uninstrument_all()


def _patch(library: _Library) -> None:
    with _lock:
        if _users == 0:
            return
        try:
            import_module(f"{__name__}.{library.home}").instrument()
            _status[library.name] = "recorded"
        except Exception as error:
            # A package that has changed beyond recognition costs the recording, not the agent.
            logger.exception("What is done through %s can't be recorded.", library.name)
            _status[library.name] = f"failed: {error!r}"


def _start(other: Other) -> None:
    from agentlightning.instrumentation import others

    with _lock:
        if _users == 0:
            return
        try:
            others.start(other)
            _status[other.distribution] = "recorded"
        except Exception as error:
            logger.exception("%s can't be started.", other.distribution)
            _status[other.distribution] = f"failed: {error!r}"


def _finding(library: _Library) -> Finding:
    from importlib.metadata import PackageNotFoundError, version

    try:
        found: str | None = version(library.distribution)
    except PackageNotFoundError:
        found = None
    status = _status.get(library.name, "off") if found is not None else "not installed"
    return Finding(library.name, found, status, library.recorded)


def _log(found: Findings) -> None:
    there = [f"{finding.name} {finding.version}" for finding in found if finding.version]
    missing = [finding.name for finding in found if not finding.version]
    logger.info(
        "Recording what is done through %s. Not installed: %s.",
        ", ".join(there) or "nothing",
        ", ".join(missing) or "nothing",
    )
