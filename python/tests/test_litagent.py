"""Agents: which method is called for what, and functions made into agents."""

from __future__ import annotations

import inspect
import pickle
from typing import Any

import cloudpickle
import pytest

import agentlightning as agl
from agentlightning.litagent.decorator import (
    FunctionalLitAgent,
    _validate_llm_rollout_func,
    _validate_prompt_rollout_func,
)
from agentlightning.litagent.litagent import is_v0_1_rollout_api

LLM = agl.LLM(endpoint="http://h", model="m")
PROXY = agl.ProxyLLM(endpoint="http://h/v1", model="p")
PROMPT = agl.PromptTemplate(template="{x}", engine="f-string")


def _rollout() -> agl.AttemptedRollout:
    attempt = agl.Attempt(rollout_id="r", attempt_id="a", sequence_id=1, start_time=0.0)
    return agl.AttemptedRollout(rollout_id="r", input="t", start_time=0.0, attempt=attempt)


@agl.rollout
def with_llm(task: str, llm: agl.LLM, rollout: Any, note: str = "default") -> list[Any]:
    """Says what it got."""
    return [task, llm, rollout, note]


@agl.rollout
async def with_prompt(task: str, prompt_template: agl.PromptTemplate) -> list[Any]:
    return [task, prompt_template]


def test_functions_keep_what_they_are() -> None:
    assert isinstance(with_llm, FunctionalLitAgent)
    assert with_llm.__name__ == "with_llm"
    assert with_llm.__doc__ == "Says what it got."
    assert list(inspect.signature(with_llm).parameters) == ["task", "llm", "rollout", "note"]
    assert with_llm("t", 1, 2, note="n") == ["t", 1, 2, "n"]
    assert with_llm.__wrapped__("t", 1, 2) == ["t", 1, 2, "default"]  # type: ignore[attr-defined]


async def test_arguments_by_name() -> None:
    rollout = _rollout()
    assert with_llm.rollout("t", {"p": PROMPT, "l": LLM}, rollout) == ["t", LLM, rollout, "default"]
    assert await with_prompt("t", PROMPT) == ["t", PROMPT]
    assert await with_prompt.rollout_async("t", {"l": LLM, "p": PROMPT}, rollout) == ["t", PROMPT]

    @agl.rollout
    def both(task: Any, llm: Any, prompt_template: Any) -> Any:
        return llm, prompt_template

    assert both.rollout("t", {"l": LLM, "p": PROMPT}, rollout) == (LLM, PROMPT)


async def test_the_wrong_kind_of_call() -> None:
    assert not with_llm.is_async()
    assert with_prompt.is_async()
    with pytest.raises(RuntimeError, match="synchronous"):
        await with_llm.rollout_async("t", {}, _rollout())
    with pytest.raises(RuntimeError, match="asynchronous"):
        with_prompt.rollout("t", {}, _rollout())
    with pytest.raises(ValueError, match="No LLM resource found"):
        with_llm.rollout("t", {"p": PROMPT}, _rollout())
    with pytest.raises(ValueError, match="No prompt template resource found"):
        await with_prompt.rollout_async("t", {"l": LLM}, _rollout())


def test_of_several_resources_the_first(caplog: pytest.LogCaptureFixture) -> None:
    other = agl.LLM(endpoint="http://other", model="o")
    assert with_llm.rollout("t", {"a": LLM, "b": other}, _rollout())[1] is LLM  # type: ignore[index]
    assert "The first, 'a', is used" in caplog.text


def test_a_proxy_is_resolved_for_the_rollout() -> None:
    resolved = with_llm.rollout("t", {"p": PROXY}, _rollout())[1]  # type: ignore[index]
    assert type(resolved) is agl.LLM
    assert resolved.endpoint == "http://h/rollout/r/attempt/a/v1"
    assert resolved.model == "p"
    plain = agl.Rollout(rollout_id="r", input="t", start_time=0.0)
    with pytest.raises(ValueError, match="AttemptedRollout"):
        with_llm.rollout("t", {"p": PROXY}, plain)

    @agl.llm_rollout(strip_proxy=False)
    def keeps(task: Any, llm: Any) -> Any:
        return llm

    assert keeps.rollout("t", {"p": PROXY}, plain) is PROXY


def test_signatures_that_fit_nothing() -> None:
    def only_task(task: Any) -> None: ...
    def misnamed(sample: Any, llm: Any) -> None: ...
    def other(task: Any, model: Any) -> None: ...

    with pytest.raises(ValueError, match="must have at least 2 parameters"):
        _validate_llm_rollout_func(only_task)
    with pytest.raises(ValueError, match="must be a positional parameter called 'task'"):
        _validate_prompt_rollout_func(misnamed)
    with pytest.raises(ValueError, match="must have a positional parameter called 'llm'"):
        agl.llm_rollout(other)
    with pytest.raises(ValueError, match="must have a positional parameter called 'prompt_template'"):
        agl.prompt_rollout()(other)
    for function in (only_task, misnamed, other):
        with pytest.raises(NotImplementedError, match="does not match any known agent patterns"):
            agl.rollout(function)


def test_agents_travel() -> None:
    # One of a module, by its name: what the function refers to stays where it is.
    assert pickle.loads(pickle.dumps(with_llm)) is with_llm

    factor = 3

    @agl.rollout
    def local(task: Any, llm: Any) -> Any:
        return task * factor

    copied = cloudpickle.loads(cloudpickle.dumps(local))
    assert copied.rollout(2, {"l": LLM}, _rollout()) == 6
    assert copied.__name__ == "local"
    agent = Spelled()
    agent.set_trainer(agl.Trainer(strategy="shm"))
    assert isinstance(pickle.loads(pickle.dumps(agent)), Spelled)


class Spelled(agl.LitAgent[Any]):
    async def rollout(self, task: Any, resources: Any, rollout: Any) -> float:  # type: ignore[override]
        return 1.0


class OldAsync(agl.LitAgent[Any]):
    async def validation_rollout_async(self, task: Any, resources: Any, rollout: Any) -> float:
        return 1.0


class OldSync(agl.LitAgent[Any]):
    def rollout(self, task: Any, resources: Any, rollout: Any) -> float:
        return 1.0


class Mixed(agl.LitAgent[Any]):
    def training_rollout(self, task: Any, resources: Any, rollout: Any) -> float:
        return 1.0

    async def rollout_async(self, task: Any, resources: Any, rollout: Any) -> float:
        return 2.0


@pytest.mark.parametrize(
    ("agent", "mode", "name", "is_async"),
    [
        (Spelled(), "train", "rollout", True),
        (Spelled(), None, "rollout", True),
        (OldAsync(), "val", "validation_rollout_async", True),
        (OldSync(), "train", "rollout", False),
        (Mixed(), "train", "training_rollout", True),
        (Mixed(), "test", "rollout_async", True),
        (agl.LitAgent(), "train", "rollout", False),
    ],
)
def test_the_method_of_a_mode(agent: Any, mode: Any, name: str, is_async: bool) -> None:
    assert agent.rollout_method(mode).__name__ == name
    assert agent.is_async() is is_async


async def test_defaults_call_each_other() -> None:
    assert OldSync().training_rollout("t", {}, _rollout()) == 1.0
    assert OldSync().validation_rollout("t", {}, _rollout()) == 1.0
    assert await Mixed().training_rollout_async("t", {}, _rollout()) == 2.0
    assert await Mixed().validation_rollout_async("t", {}, _rollout()) == 2.0
    with pytest.raises(NotImplementedError):
        agl.LitAgent[Any]().rollout("t", {}, _rollout())
    with pytest.raises(NotImplementedError):
        await agl.LitAgent[Any]().rollout_async("t", {}, _rollout())


def test_what_is_left_of_older_versions() -> None:
    with pytest.warns(DeprecationWarning, match="trained_agents"):
        assert agl.LitAgent[Any](trained_agents="x").trained_agents == "x"

    def old(task: Any, rollout_id: str, resources: Any) -> None: ...

    assert is_v0_1_rollout_api(old)
    assert not is_v0_1_rollout_api(OldSync().rollout)
    with pytest.raises(ValueError, match="Runner has not been set"):
        _ = OldSync().runner
