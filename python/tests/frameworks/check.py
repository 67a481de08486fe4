"""Runs the agents of one framework, which know nothing of us, and says what was recorded of them.

    python check.py MODULE

prints a JSON line for each case of `samples/MODULE.py`: what is missing, and what the recording costs.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
# Packages that would ask their own services about us.
os.environ.update(
    LITELLM_LOCAL_MODEL_COST_MAP="True",
    CREWAI_DISABLE_TELEMETRY="true",
    CREWAI_DISABLE_TRACKING="true",
    CREWAI_TRACING_ENABLED="false",
    OTEL_SDK_DISABLED="false",
    ANONYMIZED_TELEMETRY="false",
    OPENAI_API_KEY="k",
    ANTHROPIC_API_KEY="k",
    GOOGLE_API_KEY="k",
)
REPEATS = int(os.environ.get("REPEATS", "5"))


# By the names that we and the frameworks themselves have for it.
_INPUT = re.compile(
    r"input\.value|\.input$|^gen_ai\.(tool\.call\.arguments|input)|tool_call_args|^pydantic_ai\.all"
)
_OUTPUT = re.compile(
    r"output\.value|\.output$|^gen_ai\.(tool\.call\.result|output)|tool_response|^pydantic_ai\.all|^final_result"
)


class Case(NamedTuple):
    """One way to use a framework."""

    run: Callable[[str], Any] | Callable[[str], Awaitable[Any]]
    """The agent; gets the model server's address, with `/v1`."""
    calls: int
    """How many model calls it makes."""
    agents: tuple[str, ...] = ()
    """The names that its calls' agents have, in order of their first call; `*` is none."""
    steps: tuple[str, ...] = ()
    """Kinds of spans that are to be there."""
    tools: bool = False
    """Whether the model is to have asked for tools."""
    token_ids: bool = True
    """Whether token ids are there to be had."""
    usage: bool = True
    """Whether the tokens' numbers are."""


class Server:
    """The fake model server, in a process of its own."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE.parent / "fake_vllm.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.base_url = self._process.stdout.readline().strip()

    def count(self) -> int:
        """How many requests there have been."""
        from urllib.request import urlopen

        with urlopen(self.base_url.removesuffix("/v1") + "/count") as response:
            return int(json.load(response)["requests"])

    def stop(self) -> None:
        """Ends it."""
        self._process.communicate()


@contextmanager
def measured(into: list[tuple[float, float]]) -> Iterator[None]:
    """Adds seconds of the clock and of the CPU."""

    def cpu() -> float:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_utime + usage.ru_stime

    clock, processor = time.perf_counter(), cpu()
    yield
    into.append((time.perf_counter() - clock, cpu() - processor))


async def call(case: Case, url: str) -> None:
    """Runs an agent, a sync one in a thread as runners do."""
    if inspect.iscoroutinefunction(case.run):
        await case.run(url)
    else:
        await asyncio.to_thread(case.run, url)


async def check(name: str, case: Case, server: Server) -> dict[str, Any]:
    """Runs a case with and without us."""
    from agentlightning import tracer as tracers
    from agentlightning.adapter import TracerTraceToTriplet
    from agentlightning.store import InMemoryLightningStore

    bare: list[tuple[float, float]] = []
    traced: list[tuple[float, float]] = []
    # Once to warm up: imports, caches.
    await call(case, server.base_url)
    store = InMemoryLightningStore()
    tracer = getattr(tracers, os.environ.get("TRACER", "OtelTracer"))()
    spans: list[Any] = []
    expected = 0
    for number in range(REPEATS):
        with measured(bare):
            await call(case, server.base_url)
        tracer.init_worker(0, store)
        rollout = await store.start_rollout(input=name)
        ids = {"rollout_id": rollout.rollout_id, "attempt_id": rollout.attempt.attempt_id}
        before = server.count()
        with measured(traced):
            async with tracer.trace_context(**ids):
                await call(case, server.base_url)
        tracer.teardown_worker(0)
        if number == 0:
            expected = server.count() - before
            spans = list(await store.query_spans(**ids))
    triplets = TracerTraceToTriplet().adapt(spans)
    wrong = list(_missing(case, expected, spans, triplets))
    calls = max(1, len(triplets))

    def added(which: int) -> float:
        return (min(t[which] for t in traced) - min(b[which] for b in bare)) / calls * 1000

    return {
        "case": name,
        "calls": len(triplets),
        "agents": list(dict.fromkeys(str(triplet.metadata["agent_name"]) for triplet in triplets)),
        "steps": sorted({str(kind) for span in spans if (kind := _kind(span))}),
        "wrong": wrong,
        "added_ms": round(added(0), 2),
        "added_cpu_ms": round(added(1), 2),
    }


def _kind(span: Any) -> str | None:
    attributes = span.attributes
    if span.name == "openai.chat.completion" or span.name.startswith("tool_call."):
        return None
    kind = attributes.get("agentops.span.kind") or attributes.get("gen_ai.operation.name")
    return (
        None if kind is None else {"invoke_agent": "agent", "execute_tool": "tool"}.get(str(kind), str(kind))
    )


def _missing(case: Case, expected: int, spans: list[Any], triplets: list[Any]) -> Iterator[str]:
    """What a case lacks."""
    if expected != case.calls:
        yield f"the server got {expected} requests, not {case.calls}"
    if len(triplets) != case.calls:
        yield f"{len(triplets)} triplets for {case.calls} calls"
    names = tuple(dict.fromkeys(str(triplet.metadata["agent_name"]) for triplet in triplets))
    if case.agents and names != case.agents:
        yield f"agents {names}, not {case.agents}"
    kinds = {_kind(span) for span in spans}
    yield from (f"no span of kind {step}" for step in case.steps if step not in kinds)
    for span in spans:
        if _kind(span) in ("tool", "agent") and not any(_INPUT.search(key) for key in span.attributes):
            yield f"{span.name} has no input"
        if _kind(span) == "tool" and not any(_OUTPUT.search(key) for key in span.attributes):
            yield f"{span.name} has no output"
    calls = [span for span in spans if span.name == "openai.chat.completion"]
    if case.tools and not any("gen_ai.completion.0.tool_calls.0.name" in span.attributes for span in calls):
        yield "no tool calls"
    for span in calls:
        if case.usage and span.attributes.get("gen_ai.usage.completion_tokens") is None:
            yield "a call without usage"
        if span.status.status_code != "OK":
            yield f"a call that failed: {span.status.description}"
    for triplet in triplets:
        if not triplet.prompt["raw_content"]:
            yield "a call without a prompt"
        if not triplet.response["raw_content"]:
            yield "a call without a response"
        if case.token_ids and not (triplet.prompt["token_ids"] and triplet.response["token_ids"]):
            yield "a call without token ids"
        said = any(choice.get("content") for choice in triplet.response["raw_content"] or ())
        if case.token_ids and said and not triplet.response.get("logprobs"):
            yield "a call without log-probs"
    by_id = {span.span_id for span in spans}
    if any(span.parent_id is not None and span.parent_id not in by_id for span in spans):
        yield "a span whose parent is nowhere"
    if case.agents and case.agents != ("*",) and any(span.parent_id is None for span in calls):
        yield "a call outside of everything"


async def main() -> None:
    """Runs all cases of a module, in one event loop: some SDKs keep their connections."""
    samples = importlib.import_module(f"samples.{sys.argv[1]}")
    only = sys.argv[2:]
    # What the frameworks themselves print is no result.
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    server = Server()
    try:
        for name, case in samples.CASES.items():
            if only and name not in only:
                continue
            try:
                result = await check(name, case, server)
            except ModuleNotFoundError as error:
                result = {"case": name, "skipped": str(error), "wrong": []}
            except Exception as error:
                if only:
                    raise
                result = {"case": name, "wrong": [f"{type(error).__name__}: {error}"[:500]]}
            print(json.dumps(result), file=results, flush=True)
    finally:
        server.stop()


if __name__ == "__main__":
    sys.modules["check"] = sys.modules["__main__"]
    asyncio.run(main())
