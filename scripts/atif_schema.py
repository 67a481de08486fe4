"""Writes the JSON schema of Harbor's trajectories, which our tests check what we write against.

    target/readers/atif/bin/python scripts/atif_schema.py

Runs in the environment that `make test-readers` makes: Python 3.12 with pydantic and the package harbor.
What Harbor's models ask beyond a schema (steps that count from 1, results that name their calls) is checked
there, by the models.
"""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from harbor.models.trajectories import Trajectory


def bare(node: Any, is_names: bool = False) -> Any:
    """A schema without its prose; `is_names` where the keys are names of fields."""
    if isinstance(node, list):
        return [bare(item) for item in node]
    if not isinstance(node, dict):
        return node
    prose = set() if is_names else {"title", "description", "examples"}
    return {
        key: bare(value, is_names=key in ("properties", "$defs") and not is_names)
        for key, value in node.items()
        if key not in prose
    }


path = Path(__file__).resolve().parents[1] / "python" / "tests" / "schemas" / "atif.json"
schema = {
    "$comment": f"of harbor {version('harbor')}, by scripts/atif_schema.py",
    **Trajectory.model_json_schema(),
}
path.write_text(json.dumps(bare(schema), indent=1, sort_keys=True) + "\n", encoding="utf-8")
