"""`APO`: prompts that get better, with a model that criticizes and edits, runners and a store."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import re
import runpy
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from fake_vllm import FakeVLLM
from openai import AsyncOpenAI

import agentlightning as agl
from agentlightning.adapter import TraceToMessages
from agentlightning.algorithm.apo import APO, APOResult, RolloutResultForAPO, VersionedPromptTemplate
from agentlightning.algorithm.apo import apo as apo_module
from agentlightning.algorithm.apo.placeholders import complaint

WORDS = ("please", "carefully", "briefly")
SEED = "Say {task}."
TRAIN, VAL = ["one two", "three four", "five six", "seven eight"], ["nine ten", "eleven", "twelve"]


@agl.rollout
async def agent(task: str, prompt_template: agl.PromptTemplate, llm: agl.LLM) -> float:
    """Asks a model, and is the better for every word of `WORDS` in its prompt."""
    prompt = prompt_template.format(task=task)
    async with AsyncOpenAI(base_url=llm.endpoint, api_key="none") as client:
        await client.chat.completions.create(model=llm.model, messages=[{"role": "user", "content": prompt}])
    return _reward(prompt)


@agl.rollout
async def silent(task: str, prompt_template: agl.PromptTemplate) -> float:
    """The same without a model, which is quicker."""
    return _reward(prompt_template.format(task=task))


def _reward(prompt: str) -> float:
    return sum(word in prompt for word in WORDS) / len(WORDS)


class Optimizer:
    """What the models that criticize and edit say: a critique names a word that the prompt lacks, and an edit
    has it, and a number so that no two are the same."""

    def __init__(self) -> None:
        self.numbers = itertools.count(1)
        self.critics = 0

    def __call__(self, body: dict[str, Any]) -> str | None:
        if body["model"].startswith("critic"):
            return self.critique(body)
        return self.edit(body) if body["model"].startswith("editor") else None

    def critique(self, body: dict[str, Any]) -> str:
        self.critics += 1
        missing = [word for word in WORDS if word not in self.template(body)]
        return f"It lacks {missing[self.critics % len(missing)]}" if missing else "It lacks nothing"

    def edit(self, body: dict[str, Any]) -> str:
        critique = re.search(r"It lacks (\w+)", body["messages"][0]["content"])
        assert critique is not None
        return f"{self.template(body)} {critique.group(1)} {next(self.numbers)}"

    @staticmethod
    def template(body: dict[str, Any]) -> str:
        found = re.search(r"<template>\n(.*?)\n</template>", body["messages"][0]["content"], re.DOTALL)
        assert found is not None
        return found.group(1)


@pytest.fixture
def server() -> Iterator[FakeVLLM]:
    with FakeVLLM() as running:
        running.answer = Optimizer()
        yield running


def _apo(base_url: str, **kwargs: Any) -> APO[str]:
    options = {
        **{"gradient_model": "critic", "apply_edit_model": "editor", "beam_rounds": 1},
        **{"beam_width": 1, "branch_factor": 1, "gradient_batch_size": 2, "val_batch_size": 2},
    }
    return APO[str](AsyncOpenAI(base_url=base_url, api_key="none"), **{**options, **kwargs})


def _trainer(base_url: str, algorithm: APO[str], **kwargs: Any) -> agl.Trainer:
    resources = {
        "llm": agl.LLM(endpoint=base_url, model="m"),
        "prompt": agl.PromptTemplate(template=SEED, engine="f-string"),
    }
    options: dict[str, Any] = {
        **{"algorithm": algorithm, "adapter": TraceToMessages(), "initial_resources": resources},
        **{"strategy": {"type": "shm", "main_thread": "algorithm"}, "n_runners": 2},
    }
    return agl.Trainer(**{**options, **kwargs})


def _fit(
    base_url: str, algorithm: APO[str], agent: agl.LitAgent[str] = silent, **kwargs: Any
) -> tuple[APOResult, list[agl.Rollout]]:
    trainer = _trainer(base_url, algorithm, **kwargs)
    result = trainer.fit(agent, TRAIN, val_dataset=VAL)
    assert result == algorithm.get_result()
    return result, list(asyncio.run(trainer.store.query_rollouts()))


def _asked(server: FakeVLLM, model: str) -> list[dict[str, Any]]:
    return [request for request in server.requests if request["model"] == model]


def test_it_finds_the_better_prompt(server: FakeVLLM, tmp_path: Path) -> None:
    algorithm = _apo(
        server.base_url, beam_width=2, branch_factor=2, beam_rounds=3, state_path=tmp_path / "state.json"
    )
    with pytest.raises(ValueError, match="has not been run"):
        algorithm.get_best_prompt()
    result, rollouts = _fit(server.base_url, algorithm, agent)
    assert result.seed_score == 0.0
    assert (result.best_score, result.resource_name) == (1.0, "prompt")
    assert all(word in result.best_prompt.template for word in WORDS)
    assert algorithm.get_best_prompt() == result.best_prompt
    assert [entry.leader_score for entry in result.rounds] == pytest.approx([1 / 3, 2 / 3, 1.0])

    # W·B·min(G, |train|) + (|beam| + W·B)·min(V, |val|) + |val| a round.
    assert {rollout.status for rollout in rollouts} == {"succeeded"}
    runs: list[tuple[str | None, int]] = [
        (mode, len(list(group))) for mode, group in itertools.groupby(rollouts, lambda one: one.mode)
    ]
    beams = (1, 2, 2)
    expected = [("val", 3)]
    for beam in beams:
        # What validates is the candidates' batches and then the leader's.
        expected += [("train", 2 * 2 * 2), ("val", (beam + 4) * 2 + 3)]
    assert runs == expected
    first_round = [rollout.resources_id for rollout in rollouts[3 + 8 : 3 + 8 + 13]]
    assert first_round[:10] == [f"v{version}" for version in range(5) for _ in range(2)]
    assert first_round[10:] == [result.rounds[0].beam[0]] * 3

    # All of it can be told afterwards.
    assert [entry.number for entry in result.rounds] == [1, 2, 3]
    for entry, beam in zip(result.rounds, beams, strict=True):
        assert len(entry.candidates) == beam + 4
        scores = [candidate.score for candidate in entry.candidates]
        assert scores == sorted(scores, reverse=True)
        assert entry.beam == [candidate.version for candidate in entry.candidates[:2]]
        assert len(entry.branches) == 4
        assert all(branch.critique and branch.version and not branch.refused for branch in entry.branches)
    assert result.versions == 1 + 3 * 4
    assert result.cost.calls == 3 * 4 * 2
    assert result.cost.prompt_tokens > result.cost.completion_tokens > 0
    assert APOResult.load(tmp_path / "state.json") == result
    assert list(tmp_path.iterdir()) == [tmp_path / "state.json"]

    # A critique has been told what happened.
    prompt = _asked(server, "critic")[0]["messages"]
    assert [message["role"] for message in prompt] == ["user"]
    assert SEED in prompt[0]["content"]
    assert prompt[0]["content"].count("final reward: 0.0") == 2
    assert any(f"Say {task}." in prompt[0]["content"] for task in TRAIN)


def _run_until_killed(base_url: str, state: str) -> None:
    """What the process to be killed runs."""
    algorithm = _apo(base_url, beam_rounds=3, run_initial_validation=False, state_path=state)
    _trainer(base_url, algorithm).fit(silent, TRAIN, val_dataset=VAL)


def test_it_goes_on_where_a_killed_run_has_been(server: FakeVLLM, tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    optimizer = Optimizer()
    script = f"import test_apo; test_apo._run_until_killed({server.base_url!r}, {str(state)!r})"
    process = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parent)

    def answer(body: dict[str, Any]) -> str | None:
        if body["model"] == "critic" and optimizer.critics == 1:
            # The first question of the second round.
            process.kill()
        return optimizer(body)

    server.answer = answer
    assert process.wait(60) == -9
    saved = APOResult.load(state)
    assert saved is not None
    assert [entry.number for entry in saved.rounds] == [1]
    server.answer = optimizer
    before = len(_asked(server, "critic"))

    algorithm = _apo(server.base_url, beam_rounds=3, run_initial_validation=False, state_path=state)
    result, rollouts = _fit(server.base_url, algorithm)
    assert result.rounds[:1] == saved.rounds
    assert [entry.number for entry in result.rounds] == [1, 2, 3]
    assert len(_asked(server, "critic")) == before + 2
    assert result.best_score == 1.0
    assert [branch.version for entry in result.rounds for branch in entry.branches] == ["v1", "v2", "v3"]
    assert result.cost.calls == saved.cost.calls + 4
    assert Counter(rollout.mode for rollout in rollouts) == {"train": 4, "val": 2 * (2 * 2 + 3)}

    # There is nothing left to do, and nothing is done.
    again, rollouts = _fit(server.base_url, _apo(server.base_url, beam_rounds=3, state_path=state))
    assert (again, rollouts) == (result, [])

    other = {"prompt": agl.PromptTemplate(template="Tell {task}.", engine="f-string")}
    with pytest.raises(ValueError, match="another initial prompt"):
        _fit(server.base_url, _apo(server.base_url, state_path=state), initial_resources=other)
    state.write_text('{"format": 2}')
    with pytest.raises(ValueError, match=r"state\.json is not the state of an APO run"):
        _fit(server.base_url, _apo(server.base_url, state_path=state))


@pytest.mark.parametrize(
    ("edits", "reason"),
    [
        (["Say it, please.", "Say {task}, please."], "it has lost {task}"),
        (["Say {task} to {name}, please.", "Say {task}, please."], "it has invented {name}"),
        (["Say {task} like {, please.", "Say {task}, please."], "stray brace"),
        (["Say {task:>9}, please.", "Say it, please."], "lost {task} and it has invented {task:>9}"),
    ],
)
def test_an_edit_that_cannot_be_filled_in_is_refused(server: FakeVLLM, edits: list[str], reason: str) -> None:
    optimizer, answers = Optimizer(), iter(edits)
    server.answer = lambda body: next(answers) if body["model"] == "editor" else optimizer(body)
    result, rollouts = _fit(server.base_url, _apo(server.base_url))
    (branch,) = result.rounds[0].branches
    assert reason in branch.refused[0].reason
    assert branch.refused[0].template == edits[0]
    first, second = _asked(server, "editor")
    assert second["messages"][:-2] == first["messages"]
    assert second["messages"][-2] == {"role": "assistant", "content": edits[0]}
    assert branch.refused[0].reason in second["messages"][-1]["content"]
    assert result.cost.calls == 3
    if edits[1] == "Say it, please.":
        assert (branch.version, len(branch.refused)) == (None, 2)
        assert branch.reason == "the edit can't be used: it has lost {task}"
        assert [candidate.version for candidate in result.rounds[0].candidates] == ["v0"]
        # Nobody has to try it out.
        assert Counter(rollout.mode for rollout in rollouts) == {"train": 2, "val": 3 + 2 + 3}
    else:
        assert (branch.version, branch.reason) == ("v1", None)
        assert result.best_prompt.template == edits[1]
        assert result.best_score == pytest.approx(1 / 3)


def test_placeholders_of_every_engine() -> None:
    def engine(text: str, name: Any = "f-string") -> agl.PromptTemplate:
        return agl.PromptTemplate(template=text, engine=name)

    assert complaint(engine('{a} {b.c[0]!r:>{a}} {{"json": 1}}'), "{{}} {b.c[0]!r:>{a}}{a}{a}") is None
    assert complaint(engine("{a} {b!r}"), "{b} {a}") == "it has lost {b!r} and it has invented {b}"
    # Where the prompt is not filled in by `format`, nothing is known of its braces.
    assert complaint(engine('{"json": {task}}'), "anything {") is None
    assert complaint(engine("{{ a }} {b}", "jinja"), "{{a}} { }") is None
    assert complaint(engine("{{ a }}", "jinja"), "{a}") == "it has lost {{ a }}"


@pytest.mark.parametrize("said", ["", "  \n"])
def test_no_critique_adds_no_candidate(server: FakeVLLM, said: str) -> None:
    server.answer = lambda body: said if body["model"] == "critic" else None
    result, _ = _fit(server.base_url, _apo(server.base_url, branch_factor=2, beam_rounds=2))
    assert _asked(server, "editor") == []
    assert result.best_version == "v0"
    assert [[one.version for one in entry.candidates] for entry in result.rounds] == [["v0"], ["v0"]]
    assert {branch.reason for entry in result.rounds for branch in entry.branches} == {
        "the critique is empty"
    }


def test_an_edit_that_says_nothing_new_adds_no_candidate(server: FakeVLLM) -> None:
    optimizer = Optimizer()
    edits = iter([SEED, "Say {task}, please.", "Say {task}, please."])
    server.answer = lambda body: next(edits) if body["model"] == "editor" else optimizer(body)
    result, _ = _fit(server.base_url, _apo(server.base_url, branch_factor=3))
    assert sorted(branch.version or "" for branch in result.rounds[0].branches) == ["", "", "v1"]
    assert {candidate.prompt_template.template for candidate in result.rounds[0].candidates} == {
        SEED,
        "Say {task}, please.",
    }


def test_of_equals_the_older_stays(server: FakeVLLM) -> None:
    optimizer = Optimizer()
    server.answer = lambda body: "Tell {task}." if body["model"] == "editor" else optimizer(body)
    result, _ = _fit(server.base_url, _apo(server.base_url))
    assert [candidate.version for candidate in result.rounds[0].candidates] == ["v0", "v1"]
    assert (result.best_version, result.best_score) == ("v0", 0.0)


@pytest.mark.parametrize(("max_calls", "calls", "rounds"), [(5, 4, 1), (9, 8, 1), (10, 10, 2), (1, 0, 0)])
def test_a_budget_of_calls(server: FakeVLLM, max_calls: int, calls: int, rounds: int) -> None:
    algorithm = _apo(server.base_url, beam_width=2, branch_factor=2, beam_rounds=2, max_calls=max_calls)
    result, rollouts = _fit(server.base_url, algorithm)
    assert result.cost.calls == calls
    assert len(_asked(server, "critic")) + len(_asked(server, "editor")) == calls
    assert len(result.rounds) == rounds
    assert result.versions == 1 + calls // 2
    # Batches that no critique would be made of are not run.
    assert Counter(rollout.mode for rollout in rollouts)["train"] == 2 * (calls // 2)


def test_a_budget_that_leaves_no_second_try(server: FakeVLLM) -> None:
    optimizer = Optimizer()
    server.answer = lambda body: "lost" if body["model"] == "editor" else optimizer(body)
    result, _ = _fit(server.base_url, _apo(server.base_url, max_calls=2))
    assert result.cost.calls == 2
    (branch,) = result.rounds[0].branches
    assert (branch.reason, len(branch.refused)) == ("the budget of 2 calls is spent", 1)


def test_a_temperature_is_left_out_where_it_is_refused(
    server: FakeVLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    algorithm = _apo(
        server.base_url,
        gradient_model="critic-no-temperature",
        beam_rounds=2,
        diversity_temperature=0.5,
        _poml_trace=True,
    )
    result, _ = _fit(server.base_url, algorithm)
    assert result.cost.calls == 4
    critics = _asked(server, "critic-no-temperature")
    assert [request.get("temperature") for request in critics] == [0.5, None, None]
    assert [request.get("temperature") for request in _asked(server, "editor")] == [0.5, 0.5]
    trace = [json.loads(line) for line in (tmp_path / "apo_trace.jsonl").read_text().splitlines()]
    assert [line["model"] for line in trace] == ["critic-no-temperature", "editor"] * 2
    assert trace[0]["messages"] == critics[0]["messages"]
    assert trace[0]["answer"] == result.rounds[0].branches[0].critique


def test_a_model_that_fails_ends_the_run(server: FakeVLLM) -> None:
    server.answer = lambda body: None
    algorithm = _apo(server.base_url, gradient_model="bad", branch_factor=2)
    trainer = _trainer(server.base_url, algorithm)
    with pytest.raises(Exception, match="The model `bad` does not exist"):
        trainer.fit(silent, TRAIN, val_dataset=VAL)
    rollouts = asyncio.run(trainer.store.query_rollouts())
    assert {rollout.status for rollout in rollouts} <= {"succeeded", "cancelled", "failed"}


@pytest.mark.parametrize(
    ("kwargs", "data", "message"),
    [
        ({"adapter": agl.TracerTraceToTriplet()}, (TRAIN, VAL), "Adapter must be a TraceToMessages for APO"),
        ({"adapter": None}, (TRAIN, VAL), r"adapter=TraceToMessages\(\), not TracerTraceToTriplet"),
        ({"initial_resources": None}, (TRAIN, VAL), "initial_resources are not set"),
        (
            {"initial_resources": {"llm": agl.LLM(endpoint="http://h", model="m")}},
            (TRAIN, VAL),
            "no PromptTemplate for APO algorithm to start from, only llm",
        ),
        ({}, (None, VAL), "train_dataset is required"),
        ({}, (TRAIN, None), "val_dataset is required"),
        ({}, (TRAIN, []), "val_dataset is required for APO algorithm, with at least one task"),
    ],
)
def test_what_it_needs(server: FakeVLLM, kwargs: dict[str, Any], data: tuple[Any, Any], message: str) -> None:
    trainer = _trainer(server.base_url, _apo(server.base_url), **kwargs)
    with pytest.raises(ValueError, match=message):
        trainer.fit(silent, data[0], val_dataset=data[1])


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("beam_width", 0, "beam_width must be at least 1, not 0"),
        ("max_calls", -1, "max_calls must be at least 0"),
        ("edit_prompts", ["$critique $other"], r"edit_prompts\[0\] can't be filled in: 'other'"),
        ("gradient_prompts", ["100 $"], r"gradient_prompts\[0\] can't be filled in"),
        ("gradient_prompts", "one text", "gradient_prompts must be a sequence"),
    ],
)
def test_arguments_that_make_no_sense(argument: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _apo("http://127.0.0.1:1", **{argument: value})


def test_texts_of_ones_own(server: FakeVLLM) -> None:
    algorithm = _apo(
        server.base_url,
        gradient_prompts=["<template>\n$prompt_template\n</template>\n$traces costs $$1"],
        edit_prompts=["<template>\n$prompt_template\n</template>\nMind: $critique"],
    )
    result, _ = _fit(server.base_url, algorithm)
    asked = _asked(server, "critic")[0]["messages"][0]["content"]
    assert asked.endswith("costs $1")
    assert '"name": "agentlightning.annotation"' in asked
    assert "agentlightning.state" not in asked
    edit = _asked(server, "editor")[0]["messages"][0]["content"]
    assert edit.endswith(f"Mind: {result.rounds[0].branches[0].critique}")


# One step at a time, as the methods are documented.


def _stepping(store: agl.LightningStore, **kwargs: Any) -> tuple[APO[str], TraceToMessages]:
    algorithm, adapter = _apo("http://127.0.0.1:1", **kwargs), TraceToMessages()
    algorithm.set_store(store)
    algorithm.set_adapter(adapter)
    return algorithm, adapter


def _version(name: str = "v7") -> VersionedPromptTemplate:
    return VersionedPromptTemplate(name, agl.PromptTemplate(template=SEED, engine="f-string"))


class _Watched(agl.LightningStoreThreaded):
    """A store whose first rollout ends well, while the second is begun, and the others wait."""

    waits: list[float | None]

    async def enqueue_rollout(self, *args: Any, **kwargs: Any) -> Any:
        rollout = await super().enqueue_rollout(*args, **kwargs)
        number = len(await self.query_rollouts())
        if number <= 2:
            claimed = await self.dequeue_rollout("w")
            assert claimed is not None
            if number == 1:
                span = agl.emit_reward(1.0, propagate=False)
                ids = {"rollout_id": claimed.rollout_id, "attempt_id": claimed.attempt.attempt_id}
                await self.add_span(agl.Span.from_core_fields(span, sequence_id=1, **ids))
                await self.update_attempt(**ids, status="succeeded")
        return rollout

    async def wait_for_rollouts(self, *, rollout_ids: list[str], timeout: float | None = None) -> Any:
        self.waits = [*getattr(self, "waits", []), timeout]
        return await super().wait_for_rollouts(rollout_ids=rollout_ids, timeout=timeout)


async def test_what_takes_too_long_is_called_off(caplog: pytest.LogCaptureFixture) -> None:
    store = _Watched(agl.InMemoryLightningStore())
    algorithm, _adapter = _stepping(store, rollout_batch_timeout=0.0)
    results, score = await algorithm.evaluate_prompt_on_batch(
        _version(), "prompt", TRAIN, "val", prefix="[x]"
    )
    # What was begun counts as 0, what nobody has begun does not.
    assert [(one["status"], one["final_reward"]) for one in results] == [
        ("succeeded", 1.0),
        ("cancelled", None),
    ]
    assert score == 0.5
    rollouts = await store.query_rollouts()
    assert [rollout.status for rollout in rollouts] == ["succeeded", *["cancelled"] * 3]
    assert {(rollout.mode, rollout.resources_id) for rollout in rollouts} == {("val", "v7")}
    assert "[x] 3 of 4 rollouts have not ended within 0 s and are called off." in caplog.text
    assert store.waits == [0.0]


async def test_one_look_is_enough_where_all_have_ended() -> None:
    store = _Watched(agl.InMemoryLightningStore())
    algorithm, _adapter = _stepping(store)
    _, score = await algorithm.evaluate_prompt_on_batch(_version(), "prompt", TRAIN[:1], "train")
    assert (score, store.waits) == (1.0, [0.0])


async def test_a_rollout_that_is_gone_is_not_waited_for(memory: agl.InMemoryLightningStore) -> None:
    algorithm, _adapter = _stepping(memory)
    work = asyncio.ensure_future(algorithm.evaluate_prompt_on_batch(_version(), "prompt", TRAIN[:1], "train"))
    claimed = await memory.dequeue_rollout("w", wait=30.0)
    assert claimed is not None
    await memory.delete_rollout(claimed.rollout_id)
    assert await work == ([], 0.0)


async def test_whoever_is_stopped_leaves_no_work(memory: agl.InMemoryLightningStore) -> None:
    algorithm, _adapter = _stepping(memory)
    batches = [
        asyncio.ensure_future(algorithm.evaluate_prompt_on_batch(_version(f"v{i}"), "p", TRAIN, "train"))
        for i in range(3)
    ]
    while len(await memory.query_rollouts()) < 12:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    for batch in batches:
        batch.cancel()
    await asyncio.gather(*batches, return_exceptions=True)
    rollouts = await memory.query_rollouts()
    assert {rollout.status for rollout in rollouts} == {"cancelled"}
    # In the order in which they were asked for.
    assert [rollout.resources_id for rollout in rollouts] == ["v0"] * 4 + ["v1"] * 4 + ["v2"] * 4


class _Fixed:
    """Stands for `random`, and notes what is asked of it."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def choice(self, options: Sequence[Any]) -> Any:
        self.asked.append(("choice", len(options)))
        return options[0]

    def sample(self, population: Sequence[Any], k: int) -> list[Any]:
        self.asked.append(("sample", population, k))
        return list(population)[:k]


async def test_chance_is_that_of_the_module(server: FakeVLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    fixed = _Fixed()
    monkeypatch.setattr(apo_module, "random", fixed)
    algorithm = _apo(server.base_url, beam_width=3, gradient_batch_size=2)
    beam = [_version("a"), _version("b")]
    # No chance where all are taken.
    assert [place for place, _ in algorithm._sample_parent_prompts(beam, 1)] == [0, 1, 0]
    assert fixed.asked == []
    beam.append(_version("c"))
    assert [one.version for _, one in algorithm._sample_parent_prompts(beam, 1)] == ["a", "b", "c"]
    assert fixed.asked == [("sample", range(3), 3)]
    fixed.asked.clear()
    results = [
        RolloutResultForAPO(status="succeeded", final_reward=reward, spans=[], messages=[])
        for reward in (0.25, 0.75, None)
    ]
    await algorithm.compute_textual_gradient(_version(), results[:1])
    assert fixed.asked == [("choice", 3)]
    assert await algorithm.compute_textual_gradient(_version(), results) == "It lacks briefly"
    assert fixed.asked[2:] == [("sample", results, 2)]
    (message,) = _asked(server, "critic")[-1]["messages"]
    assert message["role"] == "user"
    assert message["content"].startswith("You optimize a prompt template.")
    assert "final reward: 0.25" in message["content"]
    fixed.asked.clear()
    edited = await algorithm.textual_gradient_and_apply_edit(_version(), results[:1])
    assert edited == f"{SEED} please 1"
    assert fixed.asked == [("choice", 2), ("choice", 3)]


async def test_spans_that_are_no_messages_are_no_reason_to_stop(
    memory: agl.InMemoryLightningStore, caplog: pytest.LogCaptureFixture
) -> None:
    algorithm, _adapter = _stepping(memory)
    rollout = await memory.start_rollout("task")
    attributes = {"gen_ai.prompt.0.content": "without a role"}
    ids = {"rollout_id": rollout.rollout_id, "attempt_id": rollout.attempt.attempt_id}
    await memory.add_span(agl.Span.from_attributes(attributes=attributes, sequence_id=1, **ids))
    with caplog.at_level(logging.WARNING):
        (result,) = await algorithm.get_rollout_results([rollout])
    assert (result["messages"], len(result["spans"]), result["final_reward"]) == ([], 1, None)
    assert "can't be read as messages" in caplog.text


def test_the_lazy_name_makes_one() -> None:
    assert isinstance(agl.APO(AsyncOpenAI(base_url="http://h", api_key="none")), APO)


def test_the_example(server: FakeVLLM, tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "examples" / "apo" / "main.py"
    tasks = runpy.run_path(str(example))["TASKS"]

    def answer(body: dict[str, Any]) -> str:
        prompt = body["messages"][0]["content"]
        if body["model"] == "optimizer":
            return (
                "Ask for one word" if "<critique>" not in prompt else f"{Optimizer.template(body)} One word!"
            )
        desk = next(task["desk"] for task in tasks if task["text"] in prompt)
        return desk if "One word!" in prompt else f"That is for {desk}."

    server.answer = answer
    environment = {
        **os.environ,
        **{"OPENAI_BASE_URL": server.base_url, "MODEL": "m", "OPTIMIZER_MODEL": "optimizer"},
    }
    shown = subprocess.run(
        [sys.executable, str(example)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert lines[0].startswith("0.5 -> 1.0 (v1, ")
    assert lines[1] == "Who reads this? {complaint} One word!"
    assert (tmp_path / "apo_state.json").exists()
