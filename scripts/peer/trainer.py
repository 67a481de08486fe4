"""agentlightning 0.3's own Trainer, runners and Baseline over our server: python trainer.py URL [ROLLOUTS].

Runs in an environment that has agentlightning 0.3 from PyPI. Every agent leaves a message, an object and a
reward; afterwards 0.3's client has to find all of it.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter

from checks import Checks

import agentlightning as agl

RUNNERS = 4


class Doubler(agl.LitAgent):
    """Doubles a number; half right is worth half."""

    def rollout(self, task: dict, resources: agl.NamedResources, rollout: agl.Rollout) -> float:
        """Leaves three spans and a reward."""
        prompt = resources["prompt"].format(number=task["number"])
        agl.emit_message(prompt)
        agl.emit_object({"number": task["number"], "double": 2 * task["number"]})
        agl.emit_annotation({"task": task["number"], "note": "ünïcode ✓"})
        return reward_of(task["number"])


def reward_of(number: int) -> float:
    """What the agent is to get for a task."""
    return (number % 5) / 4


async def check(url: str, rollouts: int) -> Checks:
    """Reads everything back, page by page."""
    checks = Checks("0.3's trainer over our server")
    store = agl.LightningStoreClient(url)
    found = []
    while page := await store.query_rollouts(limit=50, offset=len(found), sort_by="start_time"):
        found.extend(page)
    await store.close()
    checks.equal("rollouts", len(found), rollouts)
    checks.equal("statuses", Counter(rollout.status for rollout in found), Counter(succeeded=rollouts))
    numbers = sorted(rollout.input["number"] for rollout in found)
    checks.equal("tasks", numbers, list(range(rollouts)))

    store = agl.LightningStoreClient(url)
    for rollout in found:
        number = rollout.input["number"]
        attempts = await store.query_attempts(rollout.rollout_id)
        checks.equal(f"attempts of {number}", [attempt.status for attempt in attempts], ["succeeded"])
        spans = list(await store.query_spans(rollout.rollout_id, attempt_id="latest"))
        names = Counter(span.name for span in spans)
        wanted = Counter(
            {"agentlightning.message": 1, "agentlightning.object": 1, "agentlightning.annotation": 2}
        )
        checks.equal(f"spans of {number}", names, wanted)
        sequence_ids = [span.sequence_id for span in spans]
        checks.equal(f"order of {number}", sequence_ids, sorted(set(sequence_ids)))
        checks.equal(f"reward of {number}", agl.find_final_reward(spans), reward_of(number))
        messages = [agl.get_message_value(span) for span in spans if span.name == "agentlightning.message"]
        checks.equal(f"message of {number}", messages, [f"What is twice {number}?"])
    await store.close()
    return checks


def main() -> None:
    """Trains, then checks."""
    url = sys.argv[1]
    rollouts = int(sys.argv[2]) if len(sys.argv) > 2 else 200
    prompt = agl.PromptTemplate(template="What is twice {number}?", engine="f-string")
    trainer = agl.Trainer(
        n_runners=RUNNERS,
        algorithm=agl.Baseline(polling_interval=0.2, max_queue_length=32),
        store=agl.LightningStoreClient(url),
        strategy={"type": "cs", "managed_store": False},
        tracer=agl.OtelTracer(),
        initial_resources={"prompt": prompt},
    )
    trainer.fit(Doubler(), train_dataset=[{"number": number} for number in range(rollouts)])
    asyncio.run(check(url, rollouts)).exit()


if __name__ == "__main__":
    main()
