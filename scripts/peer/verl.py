"""The HTTP sequence of agentlightning 1.0's verl trainer, step by step: python verl.py URL [--only-1.0].

The trainer itself needs a GPU. Here its requests are made as they are documented, and those of the
controller and the proxy beside it: models replaced, rollouts created with ids, polled one by one, events
fetched raw and as triplets, rollouts deleted. Needs nothing but Python. With --only-1.0 the server need not
speak 0.3 too, as 1.0's own agl-server does not: that is how this script itself is checked.
"""

from __future__ import annotations

import sys
import uuid

from checks import Checks, call

STEPS, SAMPLES, SIBLINGS = 3, 4, 4


def model_request(prompt: list[int], response: list[int], *, status: str = "ok") -> dict[str, object]:
    """What the proxy records of a call."""
    content = [{"token": str(token), "logprob": -token / 8} for token in response]
    choice = {"index": 0, "message": {"role": "assistant", "content": "…"}, "token_ids": response}
    body = {
        "id": "chatcmpl-1",
        "prompt_token_ids": prompt,
        "choices": [{**choice, "logprobs": {"content": content}}],
    }
    data = {
        "model": "qwen",
        "model_version": 0,
        "request": {"model": "qwen", "messages": [{"role": "user", "content": "…"}]},
        "response": body if status == "ok" else {"error": "busy"},
        "server": {"model": "qwen", "endpoint": "http://127.0.0.1:9/v1", "version": 0},
        "latency_ms": 12.5,
        "http_status": 200 if status == "ok" else 503,
        "status": status,
        "retry_count": 0,
        "usage": None,
        "finish_reason": "stop",
    }
    return {"event_type": "model_request", "data": data}


class Trainer:
    """One training run over the server."""

    def __init__(self, url: str, *, speaks_03: bool, checks: Checks) -> None:
        self.url = url
        self.speaks_03 = speaks_03
        self.base = f"{url}/api/rollouts"
        self.checks = checks

    def expect(self, status: int, method: str, url: str, body: object = None) -> object:
        """Makes a request and counts whether its status is the one documented."""
        found, answer = call(method, url, body)
        self.checks.equal(f"status of {method} {url.removeprefix(self.url)}", found, status)
        return answer

    def replace_models(self, step: int) -> None:
        """New addresses come with every step."""
        models = f"{self.url}/api/models"
        self.checks.equal("answer to the deletion", self.expect(200, "DELETE", models), {"status": "ok"})
        model = {"model": "qwen", "endpoint": f"http://127.0.0.1:{9000 + step}/v1", "version": step}
        self.checks.equal("models", self.expect(201, "POST", models, [model]), [model])

    def create(self, step: int) -> list[str]:
        """As many siblings of each sample; creating twice creates once."""
        rollouts = [
            {
                "rollout_id": uuid.uuid4().hex,
                "input": {"data_id": f"sample-{sample}", "question": "6 * 7?"},
                "is_train": True,
                "config": {"timeout_seconds": 1800, "local": {"agent_class": "a:B", "env_map": {}}},
                "metadata": {"batch_idx": step, "sample_idx_in_batch": sample, "sibling": sibling},
            }
            for sample in range(SAMPLES)
            for sibling in range(SIBLINGS)
        ]
        created = self.expect(201, "POST", self.base, rollouts)
        ids = [rollout["rollout_id"] for rollout in rollouts]
        self.checks.equal("ids", [rollout["rollout_id"] for rollout in created], ids)
        self.checks.equal(
            "metadata", [rollout["metadata"] for rollout in created], [r["metadata"] for r in rollouts]
        )
        self.checks.equal("states", {rollout["status"]["state"] for rollout in created}, {"queuing"})
        self.checks.equal(
            "what a second creation answers", self.expect(201, "POST", self.base, rollouts), created
        )
        return ids

    def run(self, rollout_id: str, index: int) -> None:
        """What the controller, the proxy and the agent do about a rollout; every fourth fails."""
        url = f"{self.base}/{rollout_id}"
        running = self.expect(200, "PATCH", url, {"status": {"state": "running", "k8s_job_name": "job"}})
        self.checks.equal("claimed state", running["status"]["state"], "running")
        self.expect(409, "PATCH", url, {"status": {"state": "queuing"}})
        events = f"{url}/attempt/0/events"
        for event in [
            model_request([1, 2, 3], [4, 5]),
            model_request([9], [], status="error"),
            model_request([1, 2, 3, 4, 5, 6], [7, 8]),
            # The same prompt again: a retry, of which the last counts.
            model_request([1, 2, 3, 4, 5, 6], [7, 9]),
            {"event_type": "reward", "data": {"value": index / 4, "source": "grader"}},
        ]:
            stored = self.expect(200, "POST", events, event)
            self.checks.equal(
                "stored event", (stored["event_type"], stored["data"]), (event["event_type"], event["data"])
            )
        state = "failed" if index % 4 == 3 else "succeeded"
        error = {"error_message": "gave up"} if state == "failed" else {}
        self.expect(200, "PATCH", url, {"status": {"state": state, "last_attempt_id": "0", **error}})

    def harvest(self, rollout_id: str, index: int) -> None:
        """Polls, fetches events both ways, and deletes."""
        url = f"{self.base}/{rollout_id}"
        answer = self.expect(200, "GET", url)
        self.checks.equal(
            "state", answer["rollout"]["status"]["state"], "failed" if index % 4 == 3 else "succeeded"
        )
        self.checks.equal("attempts", answer["attempts"], ["0"])
        raw = self.expect(200, "GET", f"{url}/events")
        self.checks.equal("types", [event["event_type"] for event in raw], ["model_request"] * 4 + ["reward"])
        times = [event["timestamp"] for event in raw]
        self.checks.equal("order", times, sorted(times))
        triplets = self.expect(200, "GET", f"{url}/events?format=triplet")
        calls = [event["data"] for event in triplets if event["event_type"] == "model_request"]
        tokens = [
            (call["prompt_token_ids"], call["response_token_ids"]) for call in calls if call["status"] == "ok"
        ]
        self.checks.equal("tokens", tokens, [([1, 2, 3], [4, 5]), ([1, 2, 3, 4, 5, 6], [7, 9])])
        log_probs = [call["response_log_probs"] for call in calls if call["status"] == "ok"]
        self.checks.equal("log-probs", log_probs, [[-0.5, -0.625], [-0.875, -1.125]])
        rewards = [event["data"]["value"] for event in triplets if event["event_type"] == "reward"]
        self.checks.equal("rewards", rewards, [index / 4])
        self.expect(204, "DELETE", url)
        self.expect(204, "DELETE", url)
        self.expect(404, "GET", url)

    def look_from_03(self, ids: list[str]) -> None:
        """0.3 sees the rollouts, but its runners get none of them."""
        claims = self.expect(200, "POST", f"{self.url}/v1/agl/queues/rollouts/dequeue", {"limit": 100})
        self.checks.equal("claims of a 0.3 runner", claims, [])
        seen = self.expect(200, "GET", f"{self.url}/v1/agl/rollouts/{ids[0]}")
        self.checks.equal("what 0.3 sees", (seen["rollout_id"], seen["status"]), (ids[0], "queuing"))

    def step(self, step: int) -> None:
        """One step of training."""
        self.replace_models(step)
        ids = self.create(step)
        if self.speaks_03:
            self.look_from_03(ids)
        listed = self.expect(200, "GET", f"{self.base}?state_in=queuing&state_in=running&limit=500")
        self.checks.equal(
            "what a controller sees", {rollout["rollout_id"] for rollout in listed} >= set(ids), True
        )
        for index, rollout_id in enumerate(ids):
            self.run(rollout_id, index)
        for index, rollout_id in enumerate(ids):
            self.harvest(rollout_id, index)


def main() -> None:
    """Trains a few steps."""
    checks = Checks("the sequence of 1.0's verl trainer")
    trainer = Trainer(sys.argv[1].rstrip("/"), speaks_03="--only-1.0" not in sys.argv, checks=checks)
    for step in range(STEPS):
        trainer.step(step)
    checks.exit()


if __name__ == "__main__":
    main()
