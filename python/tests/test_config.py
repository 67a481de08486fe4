"""`lightning_cli`, in processes of its own, as scripts use it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cli_app
import pytest

import agentlightning as agl

APP = Path(__file__).parent / "cli_app.py"

DEFAULTS: dict[str, Any] = {
    "args": [],
    "colour": "Colour:Colour.RED",
    "either": 0,
    "folder": "PosixPath:.",
    "kwargs": {},
    "limits": None,
    "llm": None,
    "mode": "train",
    "model": "m",
    "nothing": "x",
    "rate": 0.5,
    "steps": 3,
    "tools": [],
    "top_k": 7,
    "untyped": None,
    "verbose": False,
}


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(APP), *arguments], capture_output=True, text=True, timeout=120)


def shown(*arguments: str) -> Any:
    done = call(*arguments)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return lines[0] if len(lines) == 1 else lines


def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["app", *arguments])
    with pytest.raises(SystemExit) as ended:
        agl.lightning_cli(cli_app.Agent)
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_without_flags_the_defaults_hold() -> None:
    assert shown("agent", "--agent.model", "m") == DEFAULTS
    assert call("none").returncode == 0


def test_every_type_has_its_flag() -> None:
    flags = {
        "steps": "12",
        "rate": "1e-3",
        "verbose": "Y",
        # 0.3 does not look into `int | None`, and passes "none" on as text.
        "top-k": "None",
        "colour": "blue",
        "mode": "val",
        "folder": "/tmp/x",
        "either": "nine",
        "llm": '{"endpoint": "http://h/v1", "model": "q"}',
        "nothing": "~",
        "untyped": '{"type": "a.B", "n": 1}',
    }
    line = [part for name, value in flags.items() for part in (f"--agent.{name}", value)]
    got = shown("agent", "--agent.model=m", *line, "--agent.tools", "a", "b", "--agent.limits", "1", "2")
    llm = got.pop("llm")
    assert llm.startswith("LLM:")
    assert "model='q'" in llm
    assert got == {key: value for key, value in DEFAULTS.items() if key != "llm"} | {
        "steps": 12,
        "rate": 1e-3,
        "verbose": True,
        "top_k": None,
        "tools": ["a", "b"],
        "limits": [1, 2],
        "colour": "Colour:Colour.BLUE",
        "mode": "val",
        "folder": "PosixPath:/tmp/x",
        "either": "nine",
        "nothing": None,
        "untyped": {"type": "a.B", "n": 1},
    }
    one_more = shown(
        "agent", "--agent.model", "m", "--agent.verbose", "--agent.either", "4", "--agent.limits", "nil",
        "--agent.colour", "RED", "--agent.tools",
    )  # fmt: skip
    assert (one_more["verbose"], one_more["either"], one_more["limits"]) == (True, 4, None)
    assert one_more["tools"] == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["--agent.model is required", "--config"]),
        (["--agent.model", "m", "--agent.steps", "x"], ["--agent.steps", "'x' is no integer"]),
        (["--agent.model", "m", "--agent.verbose", "perhaps"], ["--agent.verbose", "neither yes"]),
        (["--agent.model", "m", "--agent.mode", "test"], ["--agent.mode", "'test' is none of train, val"]),
        (["--agent.model", "m", "--agent.limits", "1", "b"], ["--agent.limits", "'b' is no integer"]),
        (
            ["--agent.model", "m", "--agent.llm", '{"model": "q"}'],
            ["--agent.llm", "endpoint: Field required"],
        ),
        (["--agent.model", "m", "--agent.llm", "{"], ["--agent.llm", "is no JSON"]),
        (["--agent.model", "m", "--agent.nonsense", "1"], ["--agent.nonsense"]),
        (["--agent.model", "m", "--agent.step", "1"], ["unrecognized arguments: --agent.step 1"]),
    ],
)
def test_errors_name_the_flag(
    arguments: list[str],
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    message = refused(capsys, monkeypatch, *arguments)
    assert [word for word in words if word not in message] == []


def test_several_classes() -> None:
    agent, optimizer = shown("several", "--agent.model", "m")
    assert (agent["model"], optimizer) == ("m", {"lr": None})
    twins = call("twins")
    assert twins.returncode == 1
    assert "two classes share the name 'plain'" in twins.stderr


def test_help_says_what_there_is() -> None:
    done = call("several", "--help")
    assert done.returncode == 0
    for words in (
        "An agent with many settings.",
        "100% of the time",
        "--agent.top-k int|none",
        "(default: 7)",
    ):
        assert words in " ".join(done.stdout.split())


@pytest.mark.parametrize("kind", ["json", "toml", "yaml"])
def test_config_files(kind: str, tmp_path: Path) -> None:
    if kind == "toml" and sys.version_info < (3, 11):
        pytest.skip("TOML needs Python 3.11")
    path = tmp_path / f"config.{kind}"
    if kind != "toml":
        agent = {"model": "file", "steps": 5, "tools": ["x"], "llm": {"endpoint": "http://h", "model": "q"}}
        # JSON is YAML, too.
        path.write_text(json.dumps({"agent": {**agent, "top-k": None}, "optimizer": {"lr": 0.1}}))
    else:
        path.write_text(
            '[agent]\nmodel = "file"\nsteps = 5\ntools = ["x"]\ntop_k = "none"\n'
            'llm = {endpoint = "http://h", model = "q"}\n[optimizer]\nlr = 0.1\n'
        )
    agent, optimizer = shown("several", "--config", str(path), "--agent.steps", "6")
    assert (agent["model"], agent["steps"], agent["tools"], agent["top_k"]) == ("file", 6, ["x"], None)
    assert agent["llm"].startswith("LLM:")
    assert optimizer == {"lr": 0.1}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"agents": {}}, "'agents' is none of agent"),
        ({"agent": {"step": 1}}, "agent.step is none of model, steps"),
        ({"agent": {"model": "m", "steps": "x"}}, "config agent.steps: 'x' is no integer"),
        ({"agent": {"model": "m", "steps": [1]}}, "config agent.steps: Input should be a valid integer"),
        ([], "must be an object"),
    ],
)
def test_errors_of_config_files_name_the_key(
    content: Any,
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(content))
    assert words in refused(capsys, monkeypatch, "--config", str(path))


def test_config_files_that_are_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content, words in (
        ("none.json", None, "No such file"),
        ("a.json", "{", "a.json: Expecting property name"),
        ("a.yaml", "{", "a.yaml: while parsing"),
        ("a.ini", "", "must end with .json"),
    ):
        path = tmp_path / name
        if content is not None:
            path.write_text(content)
        assert words in refused(capsys, monkeypatch, "--config", str(path))


def test_the_trainer_with_its_components() -> None:
    got = shown(
        "trainer",
        "--trainer.n-runners", "3",
        "--trainer.max-rollouts", "none",
        # 0.3 passes this on as text that no component can be made of.
        "--trainer.algorithm", '{"type": "agentlightning.algorithm.fast.Baseline", "n_epochs": 2}',
        "--trainer.strategy", '{"type": "shm", "main_thread": "algorithm"}',
        "--trainer.adapter", '{"agent_match": "planner"}',
        "--trainer.initial-resources",
        '{"llm": {"resource_type": "llm", "endpoint": "http://h", "model": "m"}}',
    )  # fmt: skip
    assert got == {
        "n_runners": 3,
        "algorithm": "Baseline",
        "strategy": "SharedMemoryExecutionStrategy",
        "agent_match": "planner",
        "max_rollouts": None,
        "resources": ["llm"],
    }
