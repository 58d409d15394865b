"""Preference data, a question with a better and a worse answer, as three tools write it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune.data.datasets import load_rows
from finetune.errors import FinetuneError
from finetune.recipe.schema import Recipe
from tests.support.finetune.shapes_data import write_dataset

MakeRecipe = Callable[..., Recipe]
IMAGE = "images/0.png"
ASKED = [
    {"from": "human", "value": "<image>hello"},
    {"from": "gpt", "value": "hi"},
    {"from": "human", "value": "which colour?"},
]
ROLES = {"human": "user", "gpt": "assistant"}
OPENAI = [{"role": ROLES[turn["from"]], "content": turn["value"]} for turn in ASKED]
PARTS = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "hello"}]}, *OPENAI[1:]]
URL = [
    {
        "role": "user",
        "content": [{"type": "image_url", "image_url": {"url": IMAGE}}, {"type": "text", "text": "hello"}],
    },
    *OPENAI[1:],
]


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def gpt(text: str) -> dict[str, Any]:
    return {"from": "gpt", "value": text}


WRITTEN: dict[str, dict[str, Any]] = {
    "LLaMA-Factory's ShareGPT": {"conversations": ASKED, "chosen": gpt("red"), "rejected": gpt("a hat")},
    "TRL, conversational": {"prompt": PARTS, "chosen": [said("red")], "rejected": [said("a hat")]},
    "TRL, whole chats": {"chosen": [*PARTS, said("red")], "rejected": [*PARTS, said("a hat")]},
    "OpenAI": {
        "input": {"messages": URL, "tools": [], "parallel_tool_calls": True},
        "preferred_output": [said("red")],
        "non_preferred_output": [said("a hat")],
    },
    "LLaMA-Factory's Alpaca": {
        "instruction": "which colour?", "history": [["<image>hello", "hi"]], "chosen": "red", "rejected": "a hat",
    },
}  # fmt: skip


def read(recipe: Recipe, folder: Path, records: list[Any], **keys: Any) -> list[Any]:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return list(load_rows(str(path), recipe.model_copy(update={"stage": "dpo"} | keys)).rows)


def texts(row: Any) -> list[tuple[str, str]]:
    return [(m["role"], "".join(part.get("text", "<image>") for part in m["content"])) for m in row.messages]


@pytest.mark.parametrize("name", WRITTEN)
def test_a_pair_is_a_chat_whose_last_two_messages_are_the_better_and_the_worse_answer(
    name: str, recipe: MakeRecipe, dataset: Path
) -> None:
    record = WRITTEN[name] | ({} if name == "OpenAI" else {"images": [IMAGE]})
    (row,) = read(recipe(), dataset, [record])
    assert texts(row) == [
        ("user", "<image>hello"),
        ("assistant", "hi"),
        ("user", "which colour?"),
        ("assistant", "red"),
        ("assistant", "a hat"),
    ]
    assert row.unlabelled == (1,)  # what was said before is read, not learnt
    assert row.images == [dataset / IMAGE]


def test_trls_plain_texts_are_read(recipe: MakeRecipe, dataset: Path) -> None:
    (row,) = read(recipe(), dataset, [{"prompt": "which colour?", "chosen": "red", "rejected": "a hat"}])
    assert texts(row) == [("user", "which colour?"), ("assistant", "red"), ("assistant", "a hat")]


def test_dataset_info_names_the_answers_columns(recipe: MakeRecipe, dataset: Path) -> None:
    records = [{"conversations": ASKED[2:], "good": gpt("red"), "bad": gpt("a hat")}]
    columns = {"messages": "conversations", "chosen": "good", "rejected": "bad"}
    write_dataset(dataset, records, "pairs", ranking=True, columns=columns)
    (row,) = load_rows("pairs", recipe(stage="dpo")).rows
    assert texts(row) == [("user", "which colour?"), ("assistant", "red"), ("assistant", "a hat")]
    write_dataset(dataset, records, "pairs", ranking=True)
    with pytest.raises(FinetuneError, match="the key ranking is for preference training: set stage: dpo"):
        load_rows("pairs", recipe())


def test_supervised_training_refuses_pairs_and_names_the_stage(recipe: MakeRecipe, dataset: Path) -> None:
    record = WRITTEN["LLaMA-Factory's ShareGPT"] | {"images": [IMAGE]}
    with pytest.raises(FinetuneError, match="'chosen' is for preference training: set stage: dpo"):
        read(recipe(), dataset, [record | {"conversations": [*ASKED, gpt("red")]}], stage="sft")


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        ({"conversations": ASKED}, "row 1: stage dpo needs a better and a worse answer.*'chosen' and 'rejected' are"),
        ({"instruction": "a?", "chosen": "b"}, "row 1: .*'rejected' is missing"),
        ({"instruction": "a?", "chosen": "b", "rejected": 3}, "row 1: 'rejected' must be a text"),
        ({"messages": [], "chosen": "b", "rejected": "c"}, "row 1: 'messages' must be a list of turns, up to"),
        (
            {"prompt": OPENAI[2:], "chosen": [said("a"), OPENAI[2], said("b")], "rejected": [said("c")]},
            "row 1: 'chosen' must be one answer, it has 3 turns",
        ),
        ({"conversations": ASKED[2:], "chosen": ASKED[2], "rejected": gpt("a")}, "row 1: turns must alternate"),
        ({"image": IMAGE, "text": "a", "chosen": "a", "rejected": "b"}, "row 1: captions have no worse answer"),
    ],
)
def test_a_pair_that_is_none_is_an_error_that_names_the_row(
    record: Any, complaint: str, recipe: MakeRecipe, dataset: Path
) -> None:
    with pytest.raises(FinetuneError, match=complaint):
        read(recipe(), dataset, [record])
