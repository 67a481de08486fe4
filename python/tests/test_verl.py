"""`VERL`: its configuration, and how it refuses to run."""

from __future__ import annotations

import copy
import importlib
import pickle
import subprocess
import sys

import pytest

import agentlightning as agl


def test_verl_is_configured_and_says_that_it_cannot_be_run() -> None:
    own = {
        "agentlightning": {"port": 1234},
        "data": {"train_batch_size": 8, "files": [{"name": "a"}]},
        "new": {"key": 1},
    }
    algorithm = agl.VERL(own)
    assert isinstance(algorithm, agl.Algorithm)
    config = copy.deepcopy(algorithm.config)
    assert config == pickle.loads(pickle.dumps(config))
    # One's own values stand in place of those that 0.3 sets, and beside them.
    assert config.agentlightning.port == config["agentlightning"]["port"] == 1234
    assert config.agentlightning.trace_aggregator.level == "transition"
    assert config.data == {"filter_overlong_prompts": False, "train_batch_size": 8, "files": [{"name": "a"}]}
    assert (config.data.files[0].name, config.new.key) == ("a", 1)
    assert config.actor_rollout_ref.rollout.mode == "async"
    with pytest.raises(AttributeError, match="no 'nothing', only agentlightning"):
        _ = config.nothing
    assert agl.VERL({}).config.agentlightning.port == 9999
    with pytest.raises(TypeError, match="config must be a dict"):
        agl.VERL(None)  # type: ignore[arg-type]
    with pytest.warns(DeprecationWarning, match="LightningStoreClient"):
        assert algorithm.get_client().endpoint == "http://localhost:1234"

    @agl.rollout
    async def nothing(task: str, prompt_template: agl.PromptTemplate) -> None:
        pass

    trainer = agl.Trainer(algorithm=algorithm, strategy={"type": "shm", "main_thread": "algorithm"})
    with pytest.raises(
        agl.VERLNotSupportedError, match=r"agl\.VERL can't be used.*training_arrays"
    ) as raised:
        trainer.fit(nothing, ["a task"])
    assert isinstance(raised.value, RuntimeError)
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)


@pytest.mark.parametrize(
    "name",
    [
        "async_server.PatchedvLLMServer",
        "daemon.AgentModeDaemon",
        "dataset.AgentDataset",
        "dataset.LoadedDataset",
        "entrypoint.TaskRunner",
        "entrypoint.run_ppo",
        "trainer.AgentLightningTrainer",
    ],
)
def test_names_of_the_verl_package_refuse(name: str) -> None:
    module, _, attribute = name.partition(".")
    found = getattr(importlib.import_module(f"agentlightning.verl.{module}"), attribute)
    with pytest.raises(agl.VERLNotSupportedError, match=rf"agentlightning\.verl\.{name} can't be used"):
        found(config=None)


def test_the_verl_command_refuses() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "agentlightning.verl"], capture_output=True, text=True, timeout=60
    )
    assert shown.returncode == 1
    assert shown.stderr.startswith("python -m agentlightning.verl can't be used: ")
    assert "Traceback" not in shown.stderr
