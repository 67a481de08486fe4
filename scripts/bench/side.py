"""One measurement of one side: run by agent.py with the interpreter of that side, prints one line of JSON.

The code is the same for both sides. It uses nothing but what 0.3 has.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path
from statistics import quantiles
from typing import Any

# What a rollout's LLM call leaves in a span: 14 attributes, 3.5 kB as JSON.
TEXT = "The quick brown fox jumps over the lazy dog. " * 24
CALL = {
    "gen_ai.system": "OpenAI",
    "gen_ai.request.model": "m",
    "gen_ai.request.temperature": 0.7,
    "gen_ai.request.max_tokens": 256,
    "gen_ai.prompt.0.role": "system",
    "gen_ai.prompt.0.content": TEXT,
    "gen_ai.prompt.1.role": "user",
    "gen_ai.prompt.1.content": TEXT,
    "gen_ai.completion.0.role": "assistant",
    "gen_ai.completion.0.content": TEXT[:400],
    "gen_ai.completion.0.finish_reason": "stop",
    "gen_ai.usage.prompt_tokens": 500,
    "gen_ai.usage.completion_tokens": 100,
    "gen_ai.response.id": "chatcmpl-1",
}


def measure_import(what: str) -> dict[str, Any]:
    """Processor seconds of the import, and of the names that a run needs, in an interpreter that has imported
    nothing else."""
    lines = ["import time", "begin = time.process_time()", "import agentlightning as agl"]
    if what == "names":
        lines += [
            "agl.Trainer, agl.LitAgent, agl.LitAgentRunner, agl.OtelTracer, agl.LightningStoreClient",
            "agl.LightningStoreServer, agl.InMemoryLightningStore, agl.emit_reward, agl.rollout, agl.algo",
        ]
    lines.append("print(time.process_time() - begin)")
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True
    )
    return {"cpu_seconds": float(done.stdout.splitlines()[-1])}


def spread(seconds: list[float]) -> dict[str, float]:
    """Median and 99th percentile, in microseconds."""
    cuts = quantiles(seconds, n=100)
    return {"p50_us": cuts[49] * 1e6, "p99_us": cuts[98] * 1e6}


async def measure_spans(address: str, count: str) -> dict[str, Any]:
    """What it costs the agent that a span is recorded, with the store behind a server."""
    import agentlightning as agl

    store = agl.LightningStoreClient(address)
    tracer = agl.OtelTracer()
    taken: list[float] = []
    with tracer.lifespan(store):
        for warmup in (True, False):
            attempted = await store.start_rollout(input="task")
            ids = {"rollout_id": attempted.rollout_id, "attempt_id": attempted.attempt.attempt_id}
            async with tracer.trace_context("bench", **ids):
                for _ in range(50 if warmup else int(count)):
                    begin = time.perf_counter()
                    agl.emit_annotation(CALL)
                    taken.append(time.perf_counter() - begin)
                    # An agent does something else in between.
                    await asyncio.sleep(0.001)
            if warmup:
                taken.clear()
        stored = len(await store.query_spans(attempted.rollout_id))
    if stored != int(count):
        raise RuntimeError(f"{stored} of {count} spans were stored")
    return spread(taken)


def empty_agent() -> Any:
    """An agent that does nothing, or waits a moment where the task says so."""
    import agentlightning as agl

    class EmptyAgent(agl.LitAgent):  # type: ignore[type-arg, misc]
        async def validation_rollout_async(self, task: Any, resources: Any, rollout: Any) -> float:
            if task == "wait":
                await asyncio.sleep(0.3)
            return 1.0

    return EmptyAgent()


def memory_of(pid: int) -> tuple[float, float]:
    """Resident and private MiB of a process."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith(" kB")}
    return sizes["Rss"] / 1024, (sizes["Private_Clean"] + sizes["Private_Dirty"]) / 1024


def children() -> list[int]:
    """This process's children that run Python."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                stat = (path / "stat").read_text(encoding="utf-8")
                if int(stat.rpartition(")")[2].split()[1]) == os.getpid() and "python" in stat:
                    memory_of(int(path.name))
                    found.append(int(path.name))
            except (OSError, KeyError):
                continue
    return found


def measure_rollouts(n_runners: str, count: str) -> dict[str, Any]:
    """Rollouts a second of an agent that does nothing, through `Trainer.fit`."""
    import agentlightning as agl

    measured: dict[str, Any] = {}
    prompt = {"prompt": agl.PromptTemplate(template="{x}", engine="f-string")}

    async def run(store: Any, inputs: list[Any]) -> list[Any]:
        requests = [agl.EnqueueRolloutRequest(input=item) for item in inputs]
        ids = [rollout.rollout_id for rollout in await store.enqueue_many_rollouts(requests)]
        # In their order, and not all at once, which would be most of the work.
        left = deque(ids)
        while left:
            first = list(itertools.islice(left, 50))
            done = await store.wait_for_rollouts(rollout_ids=first, timeout=0.0)
            ended = {rollout.rollout_id for rollout in done}
            while left and left[0] in ended:
                left.popleft()
            await asyncio.sleep(0.0 if len(ended) == len(first) else 0.01)
        return ids

    @agl.algo
    async def enqueue_all(*, store: Any) -> None:
        await store.update_resources("prompt", prompt)
        workers: set[str] = set()
        # Until every runner is at work.
        while len(workers) < int(n_runners):
            for rollout_id in await run(store, ["wait"] * int(n_runners)):
                workers.add((await store.get_latest_attempt(rollout_id)).worker_id)
        begin = time.perf_counter()
        ids = await run(store, list(range(int(count))))
        measured["seconds"] = time.perf_counter() - begin
        rollouts = [await store.get_rollout_by_id(rollout_id) for rollout_id in ids]
        if {rollout.status for rollout in rollouts} != {"succeeded"}:
            raise RuntimeError("some rollouts have failed")
        memory = [memory_of(pid) for pid in children()]
        measured["rss_mib"] = sorted(rss for rss, _ in memory)[len(memory) // 2]
        measured["private_mib"] = sorted(private for _, private in memory)[len(memory) // 2]

    tracer = agl.OtelTracer()
    trainer = agl.Trainer(
        algorithm=enqueue_all,
        n_runners=int(n_runners),
        tracer=tracer,
        runner=agl.LitAgentRunner(tracer, poll_interval=0.01, interval_jitter=0.0),
        port=int(os.environ["BENCH_PORT"]),
    )
    trainer.fit(empty_agent())
    return {"per_second": int(count) / measured.pop("seconds"), **measured}


def measure_latency(address: str, count: str) -> dict[str, Any]:
    """From the enqueue to the agent's first line, with a runner that has nothing else to do."""
    import agentlightning as agl

    started = threading.Event()
    moments: list[float] = []

    class Noting(agl.LitAgent):  # type: ignore[type-arg]
        async def validation_rollout_async(self, task: Any, resources: Any, rollout: Any) -> float:
            moments.append(time.perf_counter())
            started.set()
            return 1.0

    async def enqueue() -> list[float]:
        store = agl.LightningStoreClient(address)
        await store.add_resources({"prompt": agl.PromptTemplate(template="{x}", engine="f-string")})
        taken = []
        for number in range(int(count) + 5):
            started.clear()
            begin = time.perf_counter()
            rollout = await store.enqueue_rollout(input=number)
            await asyncio.to_thread(started.wait)
            if number >= 5:
                taken.append(moments[-1] - begin)
            await store.wait_for_rollouts(rollout_ids=[rollout.rollout_id], timeout=0.05)
            # Idle for a while, and out of step with whoever polls.
            await asyncio.sleep(0.05 + 0.0007 * number)
        return taken

    def work() -> None:
        runner = agl.LitAgentRunner(
            agl.OtelTracer(),
            max_rollouts=int(count) + 5,
            poll_interval=0.01,
            interval_jitter=0.0,
        )
        with runner.run_context(agent=Noting(), store=agl.LightningStoreClient(address)):
            asyncio.run(runner.iter())

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    time.sleep(1.0)
    taken = asyncio.run(enqueue())
    worker.join(10)
    return spread(taken)


def main() -> None:
    """Does what the command line names."""
    name, *arguments = sys.argv[1:]
    result = globals()[f"measure_{name}"](*arguments)
    if asyncio.iscoroutine(result):
        result = asyncio.run(result)
    # Whatever else was printed came before.
    print("\n" + json.dumps(result), flush=True)
    # Threads and processes of either side must not keep the figures waiting.
    os._exit(0)


if __name__ == "__main__":
    main()
