"""An algorithm of one's own in thirty lines: of several prompts it keeps the one that does best.

python examples/algorithms/best_prompt.py
"""

from __future__ import annotations

from statistics import fmean
from typing import Any

import agentlightning as agl

PROMPTS = ["Do {task}!", "Do {task}, please.", "{task}"]


# The algorithm. It gets by name whichever it asks for of store, adapter, llm_proxy, initial_resources,
# train_dataset and val_dataset.
@agl.algo
async def best_prompt(*, store: agl.LightningStore, train_dataset: list[Any]) -> tuple[float, str]:
    """Tries every prompt on every task, and returns the best mean reward and its prompt."""
    scores = []
    for template in PROMPTS:
        prompt = agl.PromptTemplate(template=template, engine="f-string")
        update = await store.update_resources("prompt", {"prompt": prompt})
        rollout_ids = []
        for task in train_dataset:
            rollout = await store.enqueue_rollout(input=task, mode="train", resources_id=update.resources_id)
            rollout_ids.append(rollout.rollout_id)
        await store.wait_for_rollouts(rollout_ids=rollout_ids)
        spans = [await store.query_spans(rollout_id, "latest") for rollout_id in rollout_ids]
        rewards = [agl.find_final_reward(trace) or 0.0 for trace in spans]
        scores.append((fmean(rewards), template))
    best = max(scores)
    await store.update_resources(
        "prompt", {"prompt": agl.PromptTemplate(template=best[1], engine="f-string")}
    )
    return best


@agl.rollout
def agent(task: int, prompt_template: agl.PromptTemplate) -> float:
    """Stands for an agent with a model, which is better when asked politely."""
    return float("please" in prompt_template.format(task=task))


if __name__ == "__main__":
    print(agl.Trainer(algorithm=best_prompt, n_runners=4).fit(agent, [1, 2, 3]))
