"""What the models are asked: plain texts for `string.Template`.

Texts that ask for a critique are given `$prompt_template`, `$experiments` (each with its status, final reward
and messages) and `$traces` (each with its status, final reward and spans); those that ask for an edit
`$prompt_template` and `$critique`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from string import Template
from typing import TYPE_CHECKING, Any

from agentlightning.emitter._span import shortened

if TYPE_CHECKING:
    from agentlightning.algorithm.apo.apo import RolloutResultForAPO

MAX_EXPERIMENT_CHARACTERS = 24_000
"""Of a longer experiment the middle is left out."""

GRADIENT_PROMPTS: tuple[str, ...] = (
    """\
You optimize a prompt template. Below are the template and what agents that were given it have done, with \
the reward that each of them got; a higher reward is better.

<template>
$prompt_template
</template>

$experiments

Say in a short critique what in the template has cost reward, and how to change it. Every change that you \
propose must be specific enough that somebody can make it and that a new run can tell whether it has \
helped. Speak of patterns, not of single tasks, and do not write the new template.""",
    """\
As an experienced prompt engineer, you review how a prompt template does in production.

The template:

<template>
$prompt_template
</template>

The recorded spans of some runs with it, in the order in which things happened, each run with its final \
reward (higher is better):

$traces

Find out from the spans where runs go wrong: what the model was sent, what it answered, which tools were \
called with what, and where that departed from what would have been rewarded. Answer with three to five \
bullet points under the heading `Critique:`. Each names one weakness of the template, the evidence for it, \
and the change to make. Write nothing else.""",
    """\
Review a prompt template against the runs that it has led to, and write a critique for the person who \
edits it.

<template>
$prompt_template
</template>

$experiments

Go through this list, and report only what the runs give you reason to report:

- Structure: is the order of its parts sensible, is what matters most said first, is anything said twice?
- Instructions: are they complete, unambiguous and free of contradictions? Which have been ignored, and \
why?
- Control: does it say when to use a tool, when to stop, and what to do when something is missing?
- Input and output: is it clear what each placeholder holds, and what exactly the answer has to look like?
- Scope and safety: does it keep to the task, and does it avoid guesses where facts are needed?
- Upkeep: would the next editor understand why each sentence is there?
- Testing: how would one see in the next runs whether a change has helped?

For each finding give the evidence from the runs and the smallest change that answers it, the most \
rewarding first. Keep it under 350 words, and leave the rewriting to the editor.""",
)
"""Ask for a critique."""

EDIT_PROMPTS: tuple[str, ...] = (
    """\
Rewrite a prompt template as its critique demands.

<template>
$prompt_template
</template>

<critique>
$critique
</critique>

Follow the critique in all points that concern the template. Keep every placeholder in braces exactly as \
it is written, add no new ones, and double any other brace. Answer with the new template only: no heading, \
no quotes, no explanation, no code fence.""",
    """\
Improve a prompt template with one careful change.

<template>
$prompt_template
</template>

<critique>
$critique
</critique>

Choose the one point of the critique that is likely to matter most, and change only what it takes to \
answer it. Keep tone, length and everything else as they are, above all every placeholder in braces, and \
write no further braces unless doubled. Answer with the complete template as it is after the change, and \
nothing around it.""",
)
"""Ask for an edit."""

GRADIENT_FIELDS = ("prompt_template", "experiments", "traces")
EDIT_FIELDS = ("prompt_template", "critique")

REFUSAL = Template(
    "This template can't be used: $reason. The placeholders that it has to have, and no others, are those of "
    "the template that you were given. Answer with the corrected template only."
)
"""Asks for an edit once more."""


def checked(name: str, prompts: Sequence[str], fields: Iterable[str]) -> tuple[str, ...]:
    """The texts, once it is sure that they can be filled in.

    Raises:
        ValueError: naming the argument `name`, if there are none, or one wants what there is not.
    """
    if not prompts or isinstance(prompts, str):
        raise ValueError(f"{name} must be a sequence of at least one text")
    values = dict.fromkeys(fields, "")
    for index, prompt in enumerate(prompts):
        try:
            Template(prompt).substitute(values)
        except (KeyError, ValueError) as error:
            known = ", ".join(f"${field}" for field in values)
            raise ValueError(
                f"{name}[{index}] can't be filled in: {error}. It may have {known}; a dollar sign is $$."
            ) from None
    return tuple(prompts)


def user_message(text: str, values: Mapping[str, str]) -> list[dict[str, Any]]:
    """A text, filled in, as the messages of a chat."""
    return [{"role": "user", "content": Template(text).substitute(values)}]


def experiments(results: Sequence[RolloutResultForAPO], key: str) -> str:
    """What came of rollouts, for a model to read, with `messages` or `spans` as the details."""
    parts = []
    for number, result in enumerate(results, 1):
        details = result["messages"] if key == "messages" else result["spans"]
        text = "\n".join(json.dumps(detail, ensure_ascii=False, default=str) for detail in details)
        parts.append(
            f'<experiment number="{number}">\n'
            f"status: {result['status']}\n"
            f"final reward: {'none' if result['final_reward'] is None else result['final_reward']}\n"
            f"{key}:\n{shortened(text, MAX_EXPERIMENT_CHARACTERS) or 'none were recorded'}\n"
            "</experiment>"
        )
    return "\n\n".join(parts) or "There are no experiments."
