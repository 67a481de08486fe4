"""Our trajectories, read by the models of the package harbor, whose format they are in."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from harbor.models.trajectories import Trajectory


def main() -> None:
    """Reads every trajectory."""
    found = [
        Trajectory.model_validate_json(line)
        for line in (Path(sys.argv[1]) / "atif.jsonl").read_text().splitlines()
    ]
    assert len(found) == 2, found
    for trajectory, said in zip(found, ("two", "three"), strict=True):
        assert [step.source for step in trajectory.steps] == ["system", "user", "agent", "agent"]
        called, answered = trajectory.steps[2:]
        assert called.tool_calls is not None
        assert called.observation is not None
        assert answered.metrics is not None
        assert called.tool_calls[0].arguments == {"x": 1}
        assert called.observation.results[0].source_call_id == called.tool_calls[0].tool_call_id
        assert answered.message == said
        assert answered.metrics.completion_token_ids is not None
    broken = json.loads(found[0].model_dump_json())
    broken["steps"][2]["step_id"] = 7
    try:
        Trajectory.model_validate(broken)
    except ValueError:
        print("read_atif: ok")
        return
    raise AssertionError("these models refuse nothing")


if __name__ == "__main__":
    main()
