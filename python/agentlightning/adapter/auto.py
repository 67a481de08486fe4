"""Triplets of any trace: whichever framework the agent is made of, whoever recorded its calls."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from agentlightning.adapter.triplet import TraceToTripletBase, _raising, _triplets, as_spans
from agentlightning.types import Span, Triplet

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

__all__ = [
    "AgentFrameworkAdapter",
    "AutoGenAdapter",
    "AutoTraceAdapter",
    "CrewAIAdapter",
    "DSPyAdapter",
    "FrameworkAdapter",
    "GenericAdapter",
    "GoogleADKAdapter",
    "LangChainAdapter",
    "LlamaIndexAdapter",
    "OpenAIAgentsAdapter",
    "PydanticAIAdapter",
    "SmolagentsAdapter",
    "VercelAIAdapter",
]

logger = logging.getLogger(__name__)


class FrameworkAdapter(TraceToTripletBase):
    """Reads the triplets of a trace, calls of all recorders included, whole even where it mixes frameworks.

    Which spans are calls is told by what recorded them (AgentOps, OpenLLMetry, OpenInference, OpenTelemetry's
    own conventions, LiteLLM, Weave, Vercel's AI SDK, LangSmith, our gateway); spans of one call are joined by
    the id of its response, and the gateway's token ids count.
    """

    framework: ClassVar[str | None] = None
    """The word by which the framework is known; None where any will do."""

    def __init__(
        self,
        agents: Sequence[str] = (),
        exclude_agents: Sequence[str] = (),
        exclude_llm_call_in_reward: bool = True,
        repair_hierarchy: bool = True,
        assigner: str | dict[str, Any] = "matched",
        _skip_empty_token_spans: bool = False,
    ) -> None:
        """Makes an adapter.

        Args:
            agents: The agents whose calls count; all by default. `writer` is that name, `writ*` a glob,
                `re:^wri` a regular expression; with `role:` before it, it is of the agent's role.
            exclude_agents: The agents whose calls do not count.
            exclude_llm_call_in_reward: Whether calls made to compute a reward are left out.
            repair_hierarchy: Whether spans without a telling parent are put under the span that encloses
                them.
            assigner: What each call earns: `matched`, `identical`, `per_agent`, `last_call`, or
                `{"discounted": {"gamma": 0.9}}`.
            _skip_empty_token_spans: Whether calls without token ids are left out.
        """
        self.agents = list(agents)
        self.exclude_agents = list(exclude_agents)
        self.exclude_llm_call_in_reward = exclude_llm_call_in_reward
        self.repair_hierarchy = repair_hierarchy
        self.assigner = assigner
        self._skip_empty_token_spans = _skip_empty_token_spans

    def _read(self, source: Sequence[Span | ReadableSpan]) -> dict[str, Any]:
        from agentlightning import _core
        from agentlightning._native import encode
        from agentlightning.store.native import encode_spans

        options = {
            "agents": {"include": self.agents, "exclude": self.exclude_agents},
            "exclude_llm_call_in_reward": self.exclude_llm_call_in_reward,
            "repair_hierarchy": self.repair_hierarchy,
            "assigner": self.assigner,
            "skip_empty_token_spans": self._skip_empty_token_spans,
        }
        found: dict[str, Any] = json.loads(
            _raising(_core.auto_triplets, encode_spans(as_spans(source)), encode(options))
        )
        for reward in found["reward_report"]["unmatched"]:
            logger.warning("the reward of span %s goes to no call: %s", reward["span_id"], reward["reason"])
        for reward in found["reward_report"]["unusable"]:
            logger.warning("the reward of span %s counts as none: %s", reward["span_id"], reward["reason"])
        for mismatch in found["reward_report"]["mismatches"]:
            logger.warning(
                "span %s gives %d rewards for %d calls",
                mismatch["span_id"],
                mismatch["rewards"],
                mismatch["steps"],
            )
        return found

    def adapt(self, source: Sequence[Span | ReadableSpan], /) -> list[Triplet]:
        """The triplets of a trace, in its order; none of an empty one."""
        return _triplets.validate_python(self._read(source)["triplets"])


class GenericAdapter(FrameworkAdapter):
    """Reads whatever has a prompt and a response, of no framework in particular."""


class LangChainAdapter(FrameworkAdapter):
    """Reads traces of LangChain and LangGraph."""

    framework = "lang_chain"


class AutoGenAdapter(FrameworkAdapter):
    """Reads traces of AutoGen."""

    framework = "auto_gen"


class CrewAIAdapter(FrameworkAdapter):
    """Reads traces of Crew AI."""

    framework = "crew_ai"


class OpenAIAgentsAdapter(FrameworkAdapter):
    """Reads traces of OpenAI's Agents SDK."""

    framework = "open_ai_agents"


class AgentFrameworkAdapter(FrameworkAdapter):
    """Reads traces of Microsoft's Agent Framework."""

    framework = "agent_framework"


class PydanticAIAdapter(FrameworkAdapter):
    """Reads traces of Pydantic AI."""

    framework = "pydantic_ai"


class GoogleADKAdapter(FrameworkAdapter):
    """Reads traces of Google's Agent Development Kit."""

    framework = "google_adk"


class LlamaIndexAdapter(FrameworkAdapter):
    """Reads traces of LlamaIndex."""

    framework = "llama_index"


class SmolagentsAdapter(FrameworkAdapter):
    """Reads traces of smolagents."""

    framework = "smolagents"


class DSPyAdapter(FrameworkAdapter):
    """Reads traces of DSPy."""

    framework = "dspy"


class VercelAIAdapter(FrameworkAdapter):
    """Reads traces of Vercel's AI SDK."""

    framework = "vercel"


class AutoTraceAdapter(FrameworkAdapter):
    """Looks at the spans, picks the adapter of their framework, and says which and why in the log.

    A trace of several frameworks is read whole; the adapter is that of the framework with the most spans. A
    trace of none is read by `GenericAdapter`. A subclass of a framework's adapter that is registered
    takes its place.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._adapters: dict[str, type[FrameworkAdapter]] = {
            kind.framework: kind for kind in FrameworkAdapter.__subclasses__() if kind.framework is not None
        }
        self._arguments = (args, kwargs)
        self.chosen: FrameworkAdapter | None = None
        """The adapter that the last trace was read by."""

    def register(self, adapter: type[FrameworkAdapter]) -> None:
        """Has traces of the adapter's framework read by it."""
        if adapter.framework is None:
            raise ValueError(f"{adapter.__name__} names no framework: set its `framework`")
        self._adapters[adapter.framework] = adapter

    def adapt(self, source: Sequence[Span | ReadableSpan], /) -> list[Triplet]:
        """The triplets of a trace, in its order; none of an empty one."""
        found = self._read(source)
        frameworks: list[tuple[str, int]] = found["frameworks"]
        kind = next(
            (self._adapters[name] for name, _ in frameworks if name in self._adapters), GenericAdapter
        )
        args, kwargs = self._arguments
        self.chosen = kind(*args, **kwargs)
        marks = ", ".join(f"{name} {count}" for name, count in frameworks) or "no framework's marks"
        calls = ", ".join(f"{name} {count}" for name, count in found["dialects"])
        logger.info(
            "%s reads the trace of %d spans (%s; calls recorded by %s)",
            kind.__name__,
            len(source),
            marks,
            calls or "nobody we know, so whatever has a prompt and a response counts",
        )
        if kind.adapt is FrameworkAdapter.adapt:
            return _triplets.validate_python(found["triplets"])
        return self.chosen.adapt(source)
