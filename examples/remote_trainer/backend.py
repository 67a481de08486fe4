"""A training backend: an environment, an agent, and an algorithm that has a trainer elsewhere learn.

What a backend has to do is little, because the data come ready: rows of tokens with masks, advantages and
weights, in NumPy arrays (`docs/training-data.md`). Here they go as a .npz file to `POST {trainer}/step`,
which answers with the name of the model to go on with. Replace `RemoteTrainer` to train with something else.

    python examples/remote_trainer/backend.py --trainer URL --model-url http://HOST:PORT/v1 --model NAME
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import urllib.request
from typing import Any

import numpy as np
from openai import OpenAI

import agentlightning as agl
from agentlightning.adapter import TrainingArrays, training_arrays


class Echo:
    """The environment: a word that has to be said."""

    def __init__(self, word: str) -> None:
        self.word = word

    def prompt(self) -> str:
        """What the agent is asked."""
        return f"say {self.word}"

    def judge(self, answer: str) -> float:
        """1 if the word was said, else 0."""
        return float(self.word in answer.split())


@agl.rollout
def agent(task: dict[str, str], llm: agl.LLM) -> float:
    """One try at the environment, with a model of the trainer's."""
    environment = Echo(task["word"])
    client = OpenAI(base_url=llm.endpoint, api_key="none")
    answer = client.chat.completions.create(
        model=llm.model,
        messages=[{"role": "user", "content": environment.prompt()}],
        extra_body={"return_token_ids": True},
        logprobs=True,
    )
    return environment.judge(answer.choices[0].message.content or "")


class RemoteTrainer:
    """The trainer, elsewhere."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def step(self, data: TrainingArrays) -> dict[str, Any]:
        """Has it take one step, and returns what it says."""
        body = io.BytesIO()
        np.savez(
            body,
            offsets=data.offsets,
            token_ids=data.token_ids,
            mask=data.mask,
            logprobs=data.logprobs,
            advantages=data.advantages,
            weights=data.weights,
        )
        request = urllib.request.Request(f"{self.url}/step", data=body.getvalue(), method="POST")
        with urllib.request.urlopen(request, timeout=600) as answer:
            told: dict[str, Any] = json.load(answer)
        return told


class RemoteTraining(agl.Algorithm):
    """Rollouts in groups, training data of them, one step of the trainer, and again."""

    def __init__(self, trainer: RemoteTrainer, llm: agl.LLM, *, steps: int = 2, group_size: int = 2) -> None:
        self.remote = trainer
        self.llm = llm
        self.steps = steps
        self.group_size = group_size
        self.history: list[dict[str, Any]] = []

    async def run(self, train_dataset: Any = None, val_dataset: Any = None) -> None:
        """Trains on the dataset."""
        store = self.get_store()
        tasks = [] if train_dataset is None else [train_dataset[at] for at in range(len(train_dataset))]
        for step in range(self.steps):
            resources = await store.add_resources({"llm": self.llm})
            requests = [
                agl.EnqueueRolloutRequest(
                    input=task,
                    mode="train",
                    resources_id=resources.resources_id,
                    metadata={"group_id": f"{step}-{number}"},
                )
                for number, task in enumerate(tasks)
                for _ in range(self.group_size)
            ]
            ids = [rollout.rollout_id for rollout in await store.enqueue_many_rollouts(requests)]
            await store.wait_for_rollouts(rollout_ids=ids, timeout=600)
            data = await asyncio.to_thread(
                training_arrays, store, select={"rollout_id_in": ids}, max_length=4096, estimator="grpo"
            )
            told = await asyncio.to_thread(self.remote.step, data)
            # The trainer serves the model that it has made.
            self.llm = self.llm.model_copy(update={"model": told["model"]})
            dropped = data.report["dropped_by_reason"]
            self.history.append(
                {"rows": len(data), "rewards": data.rewards.tolist(), "dropped": dropped, **told}
            )


def main() -> None:
    """Trains on a few words."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trainer", required=True, help="address of the trainer")
    parser.add_argument("--model-url", required=True, help="base URL of the model's API")
    parser.add_argument("--model", required=True, help="name of the model")
    parser.add_argument("--steps", type=int, default=2)
    arguments = parser.parse_args()
    llm = agl.LLM(endpoint=arguments.model_url, model=arguments.model)
    algorithm = RemoteTraining(RemoteTrainer(arguments.trainer), llm, steps=arguments.steps)
    trainer = agl.Trainer(n_runners=2, algorithm=algorithm, tracer=agl.OtelTracer())
    trainer.fit(agent, train_dataset=[{"word": word} for word in ("yes", "no", "maybe")])
    for number, step in enumerate(algorithm.history, 1):
        mean = sum(step["rewards"]) / max(step["rows"], 1)
        print(f"step {number}: {step['rows']} rows, mean reward {mean:.2f}")


if __name__ == "__main__":
    main()
