"""Our exports, read by `datasets`, by TRL's functions for the data of its trainers, and by NumPy."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, load_dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from trl.data_utils import apply_chat_template, is_conversational

# As models' templates go: tools first, calls of tools after what is said.
TEMPLATE = (
    "{% if tools %}<tools>{% for tool in tools %}{{ tool.function.name }}{% endfor %}</tools>{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content or '' }}"
    "{% for call in m.tool_calls or [] %}"
    "<call {{ call.function.name }} {{ call.function.arguments }}>"
    "{% endfor %}"
    "{% endfor %}"
)
CALL = '<assistant><call add {"x": 1}>'
ASKED = "<tools>add</tools><system>be brief<user>what is 1 + 1?"


def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of words with a chat template, made here: nothing is fetched."""
    words = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    made.chat_template = TEMPLATE
    return made


def lines(out: Path, kind: str) -> list[dict[str, Any]]:
    """The same data as JSON lines."""
    return [json.loads(line) for line in (out / f"{kind}.jsonl").read_text().splitlines()]


def read(out: Path, form: str, kind: str) -> Dataset:
    """A file as `datasets` reads it."""
    name = {"jsonl": "json"}.get(form, form)
    found = load_dataset(
        name, data_files=str(out / f"{kind}.{form}"), split="train", cache_dir=str(out / "cache")
    )
    assert isinstance(found, Dataset)
    return found


def check_parquet(out: Path) -> None:
    """Every kind, whose columns say what the lines say."""
    for form in ("parquet", "arrow"):
        rows, written = read(out, form, "trajectories"), lines(out, "trajectories")
        for column in (
            "token_ids",
            "mask",
            "logprobs",
            "reward",
            "advantage",
            "weight",
            "group",
            "rollout_id",
        ):
            assert rows[column] == [row[column] for row in written], (form, column)
        assert rows[0]["token_ids"] == [1, 2, 3, 4, 5, 6, 7, 8, 9]
        assert rows[0]["mask"] == [0, 0, 0, 1, 1, 0, 1, 1, 1]
        rows, written = read(out, form, "transitions"), lines(out, "transitions")
        for column in ("state", "action", "reward", "response_id"):
            assert rows[column] == [row[column] for row in written], (form, column)
        rows, written = read(out, form, "triplets"), lines(out, "triplets")
        assert rows["prompt_token_ids"] == [row["prompt"]["token_ids"] for row in written]
        assert [json.loads(text) for text in rows["prompt"]] == [
            row["prompt"]["raw_content"] for row in written
        ]
        rows, written = read(out, form, "atif"), lines(out, "atif")
        assert [json.loads(text) for text in rows["trajectory"]] == written
        for kind, columns in (("messages", ["messages"]), ("pairs", ["prompt", "chosen", "rejected"])):
            rows, written = read(out, form, kind), lines(out, kind)
            for column in columns:
                assert [[known(message) for message in row] for row in rows[column]] == [
                    row[column] for row in written
                ], (form, kind)


def known(message: dict[str, Any]) -> dict[str, Any]:
    """A message without the keys that columns fill with null; `content` is always there."""
    return {key: value for key, value in message.items() if value is not None or key == "content"}


def check_trl(out: Path) -> None:
    """Conversations and pairs, as TRL's trainers for SFT and DPO prepare them."""
    words = tokenizer()
    for form in ("jsonl", "parquet"):
        for example, said in zip(read(out, form, "messages"), ("two", "three"), strict=True):
            assert is_conversational(example), example
            tools = example["tools"]
            tools = json.loads(tools) if isinstance(tools, str) else tools
            text = apply_chat_template({"messages": example["messages"]}, words, tools=tools)["text"]
            assert text == f"{ASKED}{CALL}<tool>2<assistant>{said}", text
            assert words(text)["input_ids"]
        (pair,) = read(out, form, "pairs")
        assert is_conversational(pair)
        tools = pair["tools"]
        tools = json.loads(tools) if isinstance(tools, str) else tools
        text = apply_chat_template(
            {key: pair[key] for key in ("prompt", "chosen", "rejected")}, words, tools=tools
        )
        assert text == {
            "prompt": f"{ASKED}{CALL}<tool>2",
            "chosen": "<assistant>two",
            "rejected": "<assistant>three",
        }, text


def check_numpy(out: Path) -> None:
    """Buffers, mapped into memory."""
    folder = out / "trajectories.npy"
    ids, mask, offsets = (
        np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("token_ids", "mask", "token_ids_offsets")
    )
    rows = [ids[start:end].tolist() for start, end in itertools.pairwise(offsets)]
    assert rows == [row["token_ids"] for row in lines(out, "trajectories")]
    assert mask.tolist() == [bit for row in lines(out, "trajectories") for bit in row["mask"]]
    assert np.load(folder / "logprobs.npy").dtype == np.float32
    assert np.load(folder / "reward.npy").tolist() == [1.0, 0.0]
    words = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert [row["model"] for row in words] == ["m", "m"]
    assert np.load(out / "transitions.npy" / "action.npy").tolist() == [4, 5, 7, 8, 9, 4, 5, 10]


def main() -> None:
    """Runs every check."""
    out = Path(sys.argv[1])
    for check in (check_parquet, check_trl, check_numpy):
        check(out)
        print(f"{check.__name__}: ok")


if __name__ == "__main__":
    main()
