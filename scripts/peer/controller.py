"""agentlightning 1.0's agl-controller over our server: python controller.py URL [ROLLOUTS].

Runs in an environment that has agentlightning 1.0 from PyPI. Its local runner has to run every rollout, of
which two fail on purpose.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from checks import Checks, call

HERE = Path(__file__).resolve().parent
DEADLINE = 300.0


def rollout_of(number: int) -> dict[str, object]:
    """A rollout for the agent beside this file."""
    local = {
        "agent_class": "numbers_agent:NumbersAgent",
        "env_map": {"NUMBER": "input.number", "REASON": "because"},
    }
    config = {"timeout_seconds": 120, "local": local}
    return {
        "input": {"number": number, "data_id": f"task-{number}"},
        "is_train": number % 2 == 0,
        "config": config,
    }


def wait(base: str, wanted: int) -> list[dict[str, object]]:
    """Follows the log of what has ended, until as many have."""
    ended: list[dict[str, object]] = []
    after, deadline = 0, time.monotonic() + DEADLINE
    while len(ended) < wanted and time.monotonic() < deadline:
        _, page = call("GET", f"{base}/terminal?after={after}&limit=20")
        ended += page["items"]
        after = page["next_after"]
        time.sleep(0.0 if page["items"] else 0.5)
    return ended


def main() -> None:
    """Enqueues, lets the controller work, and checks."""
    url = sys.argv[1].rstrip("/")
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 50
    base = f"{url}/api/rollouts"
    checks = Checks("1.0's controller over our server")
    status, created = call("POST", base, [rollout_of(number) for number in [*range(count), -1, -2]])
    checks.equal("status of the creation", status, 201)
    # The controller records its options in a folder within the current one.
    scratch = tempfile.TemporaryDirectory()
    controller = subprocess.Popen(
        [
            str(Path(sys.executable).parent / "agl-controller"),
            "runner_type=local",
            f"agl_server.url={url}",
            "local_runner.poll_interval=1",
            "local_runner.maximum_size=8",
        ],
        cwd=scratch.name,
        env=os.environ | {"PYTHONPATH": str(HERE)},
    )
    try:
        ended = wait(base, len(created))
    finally:
        controller.terminate()
        controller.wait(timeout=60)
        scratch.cleanup()
    wanted = sorted(
        (rollout["rollout_id"], rollout["input"]["data_id"], rollout["is_train"]) for rollout in created
    )
    found = sorted((item["rollout_id"], item["data_id"], item["is_train"]) for item in ended)
    checks.equal("the log of what has ended", found, wanted)
    for rollout in created:
        number = rollout["input"]["number"]
        _, answer = call("GET", f"{base}/{rollout['rollout_id']}")
        state = answer["rollout"]["status"]
        _, events = call("GET", f"{base}/{rollout['rollout_id']}/events?event_type=reward")
        values = [event["data"]["value"] for event in events]
        checks.equal(f"state of {number}", state["state"], "failed" if number < 0 else "succeeded")
        checks.equal(f"rewards of {number}", values, [] if number < 0 else [number / 10])
        if number < 0:
            checks.equal(f"reason of {number}", "exited with code" in (state["error_message"] or ""), True)
        else:
            checks.equal(f"attempts of {number}", answer["attempts"], ["0"])
    checks.exit()


if __name__ == "__main__":
    main()
