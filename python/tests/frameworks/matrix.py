"""Runs agents of every framework that we record, in its newest version, and prints what came of it.

    python matrix.py --wheel WHEEL --environments target/frameworks [--only llama] [--update FILE]

Frameworks that can't be installed together have an environment each.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- matrix: make test-frameworks -->", "<!-- /matrix -->"


class Sample(NamedTuple):
    """The agents of one framework."""

    module: str
    """In `samples`."""
    name: str
    """What people call the framework."""
    distribution: str
    """Its name on PyPI."""
    tracer: str = "OtelTracer"


class Environment(NamedTuple):
    """What is installed together."""

    requirements: tuple[str, ...]
    samples: tuple[Sample, ...]


ENVIRONMENTS = {
    "main": Environment(
        (
            "openai",
            "anthropic",
            "httpx",
            "requests",
            "litellm",
            "langchain",
            "langchain-openai",
            "langchain-classic",
            "langgraph",
            "openai-agents",
            "autogen-agentchat",
            "autogen-ext[openai]",
            "pydantic-ai-slim[openai]",
            "smolagents[openai]",
            "dspy",
            "agentops",
            "weave",
            # Of test_matrix.py, which wants every tracer.
            "pytest",
            "pytest-asyncio",
            "pytest-timeout",
        ),
        (
            Sample("openai_sdk", "OpenAI SDK", "openai"),
            Sample("anthropic_sdk", "Anthropic SDK", "anthropic"),
            Sample("http", "httpx, requests, aiohttp", "httpx"),
            Sample("litellm_sdk", "LiteLLM", "litellm"),
            Sample("langchain_agents", "LangChain", "langchain"),
            Sample("langgraph_agents", "LangGraph", "langgraph"),
            Sample("openai_agents_sdk", "OpenAI Agents SDK", "openai-agents"),
            Sample("autogen_agentchat_agents", "AutoGen", "autogen-agentchat"),
            Sample("pydantic_ai_agents", "Pydantic AI", "pydantic-ai-slim"),
            Sample("smolagents_agents", "smolagents", "smolagents"),
            Sample("dspy_programs", "DSPy", "dspy"),
            Sample("agentops_agents", "AgentOps", "agentops"),
            Sample("openai_sdk", "`AgentOpsTracer`", "agentops", "AgentOpsTracer"),
            Sample("weave_ops", "`WeaveTracer`", "weave", "WeaveTracer"),
        ),
    ),
    "crewai": Environment(("crewai",), (Sample("crewai_crews", "CrewAI", "crewai"),)),
    "llama": Environment(
        ("llama-index-core", "llama-index-llms-openai-like"),
        (Sample("llama_index_agents", "LlamaIndex", "llama-index-core"),),
    ),
    "adk": Environment(("google-adk", "litellm"), (Sample("google_adk_agents", "Google ADK", "google-adk"),)),
    "ag2": Environment(("ag2[openai]",), (Sample("ag2_agents", "AG2", "ag2"),)),
    "ag2-0": Environment(("ag2[openai]<1",), (Sample("autogen_agents", "AG2 before 1.0", "ag2"),)),
    # The last release with the API that it is known for.
    "pyautogen": Environment(
        ("pyautogen<0.3", "openai<2"), (Sample("autogen_agents", "AutoGen 0.2", "pyautogen"),)
    ),
}


def install(environment: Environment, folder: Path, wheel: Path) -> Path:
    """Makes the environment, or brings it up to date, and returns its Python."""
    python = folder / "bin" / "python"
    uv = shutil.which("uv")
    if not python.exists():
        venv = [uv, "venv", "--quiet", "--python", sys.executable] if uv else [sys.executable, "-m", "venv"]
        subprocess.run([*venv, str(folder)], check=True)
    pip = [uv, "pip", "install", "--python", str(python)] if uv else [str(python), "-m", "pip", "install"]
    subprocess.run([*pip, "--quiet", "--upgrade", *environment.requirements, str(wheel)], check=True)
    # Of the same version, but not the same.
    again = ["--reinstall" if uv else "--force-reinstall", "--no-deps"]
    subprocess.run([*pip, "--quiet", *again, str(wheel)], check=True)
    return python


def run(python: Path, sample: Sample, repeats: int) -> list[dict[str, Any]]:
    """Runs a sample's cases."""
    import os

    version = f"import importlib.metadata as m; print(m.version({sample.distribution!r}))"
    found = subprocess.run([str(python), "-c", version], capture_output=True, text=True, check=False)
    environ = {**os.environ, "REPEATS": str(repeats), "TRACER": sample.tracer}
    done = subprocess.run(
        [str(python), str(HERE / "check.py"), sample.module],
        capture_output=True,
        text=True,
        env=environ,
        check=False,
    )
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not results:
        last = done.stderr.strip().splitlines()[-1:] or ["nothing was said"]
        results.append({"case": "-", "wrong": [f"exit code {done.returncode}: {last[0]}"]})
    name = f"{sample.name} {found.stdout.strip()}".strip()
    return [{"framework": name, **result} for result in results]


def table(results: list[dict[str, Any]]) -> str:
    """The results as a Markdown table."""
    rows = [("framework", "agent", "calls", "agents' names", "steps", "added ms", "added CPU ms", "result")]
    for result in results:
        problems = result.get("skipped") or "; ".join(dict.fromkeys(result["wrong"])) or "whole"
        agents = [name for name in result.get("agents", ()) if name != "*"]
        rows.append(
            (
                result["framework"],
                result["case"],
                str(result.get("calls", "-")),
                ", ".join(agents) or "-",
                ", ".join(result.get("steps", ())) or "-",
                str(result.get("added_ms", "-")),
                str(result.get("added_cpu_ms", "-")),
                problems.replace("|", "/"),
            )
        )
    rows.insert(1, tuple("---" for _ in rows[0]))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main() -> int:
    """Runs everything, and returns 1 if something is not whole."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wheel", type=Path, required=True)
    parser.add_argument("--environments", type=Path, required=True)
    parser.add_argument("--only", choices=[*ENVIRONMENTS])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--update", type=Path, help="a Markdown file with the table between two marks")
    options = parser.parse_args()
    results: list[dict[str, Any]] = []
    for name, environment in ENVIRONMENTS.items():
        if options.only not in (None, name):
            continue
        sys.stderr.write(f"── {name}: {', '.join(environment.requirements)}\n")
        python = install(environment, options.environments / name, options.wheel.resolve())
        for sample in environment.samples:
            sys.stderr.write(f"   {sample.name}\n")
            results += run(python, sample, options.repeats)
    text = table(results)
    sys.stdout.write(f"{text}\n")
    if options.update is not None:
        before, _, rest = options.update.read_text().partition(BEGIN)
        _, _, after = rest.partition(END)
        options.update.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")
    return int(any(result["wrong"] for result in results))


if __name__ == "__main__":
    sys.exit(main())
