"""Has APO improve a prompt: an agent that sorts complaints, judged by whether it names the right desk.

    export OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=none
    MODEL=my-model python examples/apo/main.py

Any endpoint that speaks OpenAI's chat completions will do. MODEL is what the agent asks; OPTIMIZER_MODEL,
which criticizes and edits the prompt, is the same unless it is given. A run that is stopped goes on from
apo_state.json.
"""

from __future__ import annotations

import os

from openai import AsyncOpenAI

import agentlightning as agl

BASE_URL = os.environ.get("OPENAI_BASE_URL", "https://api.openai.com/v1")
API_KEY = os.environ.get("OPENAI_API_KEY", "none")
MODEL = os.environ.get("MODEL", "gpt-4.1-mini")
OPTIMIZER = os.environ.get("OPTIMIZER_MODEL", MODEL)

TASKS = [
    {"text": "I was charged twice for March.", "desk": "billing"},
    {"text": "The app closes when I open a photo.", "desk": "technical"},
    {"text": "My parcel says delivered, but there is nothing here.", "desk": "shipping"},
    {"text": "Where do I see what I owe you?", "desk": "billing"},
    {"text": "Since the update I can't log in.", "desk": "technical"},
    {"text": "Can you send it to my office instead?", "desk": "shipping"},
    {"text": "The refund has not reached my account.", "desk": "billing"},
    {"text": "The box came open and half of it is missing.", "desk": "shipping"},
]


@agl.rollout
async def agent(task: dict[str, str], prompt_template: agl.PromptTemplate) -> float:
    """Sorts one complaint: 1 for the right desk and nothing else, 0.5 for the right one among other words."""
    prompt = prompt_template.format(complaint=task["text"])
    async with AsyncOpenAI(base_url=BASE_URL, api_key=API_KEY) as client:
        answer = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": prompt}]
        )
    said = (answer.choices[0].message.content or "").strip().lower()
    return 1.0 if said == task["desk"] else 0.5 if task["desk"] in said else 0.0


algorithm = agl.APO(
    AsyncOpenAI(base_url=BASE_URL, api_key=API_KEY),
    gradient_model=OPTIMIZER,
    apply_edit_model=OPTIMIZER,
    beam_width=2,
    branch_factor=2,
    beam_rounds=2,
    max_calls=40,
    state_path="apo_state.json",
)
trainer = agl.Trainer(
    algorithm=algorithm,
    adapter=agl.TraceToMessages(),
    initial_resources={
        "prompt": agl.PromptTemplate(template="Who reads this? {complaint}", engine="f-string")
    },
    n_runners=4,
)

if __name__ == "__main__":
    result = trainer.fit(agent, TASKS[::2], val_dataset=TASKS[1::2])
    print(f"{result.seed_score} -> {result.best_score} ({result.best_version}, {result.cost.calls} calls)")
    print(result.best_prompt.template)
