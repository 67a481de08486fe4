"""Agents of the frameworks that are used most, unmodified: every call of a model is there, whole, and in its
place.

`make test-frameworks` does the same with all frameworks in their newest versions.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECK = Path(__file__).parent / "frameworks" / "check.py"
CASES = {
    "openai_sdk": 4,
    "anthropic_sdk": 2,
    "http": 4,
    "langchain_agents": 8,
    "langgraph_agents": 3,
    "openai_agents_sdk": 7,
}


@pytest.mark.parametrize("module", CASES)
def test_agents_are_recorded(module: str) -> None:
    done = subprocess.run(
        [sys.executable, str(CHECK), module],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "REPEATS": "1"},
    )
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == CASES[module], done.stderr
    wrong = {result["case"]: result["wrong"] for result in results if result["wrong"]}
    assert wrong == {}, done.stderr
