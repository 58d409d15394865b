"""Fields of a row that mean something: honoured or refused, never lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from finetune.data.datasets import load_rows
from finetune.data.formats import Row
from finetune.errors import FinetuneError
from finetune.recipe.schema import Recipe
from finetune.training.dataset import load_training_data
from tests.support.finetune.shapes_data import write_dataset

MakeRecipe = Callable[..., Recipe]


def chat(*turns: str, flags: dict[int, dict[str, Any]] | None = None, **fields: Any) -> dict[str, Any]:
    """A row of OpenAI messages, the user first; flags: fields of the turns by their index."""
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": text, **(flags or {}).get(n, {})} for n, text in enumerate(turns)]
    return {"messages": messages, **fields}


def rows_of(recipe: Recipe, *records: Any, **entry: Any) -> list[Row]:
    write_dataset(Path(recipe.dataset_dir), list(records), **{"formatting": "openai"} | entry)
    return list(load_rows("shapes", recipe).rows)


@pytest.mark.parametrize("flag", [{"weight": 0}, {"loss": False}, {"train": False}, {"weight": 0.0}])
def test_an_answer_that_is_turned_off_has_no_labels(recipe: MakeRecipe, dataset: Path, flag: dict[str, Any]) -> None:
    ours = recipe(eval_dataset=None)
    write_dataset(dataset, [chat("Hello", "WRONG", "1+1", "2", flags={1: flag})] * 2, formatting="openai")
    data = load_training_data(ours, Console(quiet=True))
    row = data.rows[0]
    assert data.processor.tokenizer.decode(row.ids[row.labelled]) == "2<|im_end|>\n"
    assert "WRONG" in data.processor.tokenizer.decode(row.ids)


def test_equal_chats_with_other_labels_are_other_rows(recipe: MakeRecipe, dataset: Path) -> None:
    records = [chat("Hello", "there", "1+1", "2", flags={1: {"weight": weight}}) for weight in (0, 1)]
    write_dataset(dataset, records, formatting="openai")
    first, second = load_training_data(recipe(eval_dataset=None), Console(quiet=True)).rows
    assert np.array_equal(first.ids, second.ids)
    assert first.labelled.sum() < second.labelled.sum()


def test_a_chat_ends_at_its_last_label(recipe: MakeRecipe) -> None:
    record = chat("a", "b", "<image>c", "d", flags={3: {"loss": False}}, images=["images/0.png"])
    (row,) = rows_of(recipe(), record)
    assert len(row.messages) == 2
    assert (row.images, row.unlabelled) == ([], ())


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        (chat("a", "b", flags={1: {"weight": 0}}), "turns off every answer"),
        (chat("a", "b", flags={1: {"weight": 0.5}}), "turn 2: 'weight' must be 0 or 1"),
        (chat("a", "b", flags={0: {"loss": True}}), "turn 1: 'loss' is True, but only answers can be labels"),
        (chat("a", "b", audios=["1.mp3"]), "'audios' holds audio, which is not supported"),
        (chat("a", "b", audio={"path": "1.mp3"}), "'audio' holds audio"),
        (chat("a", "b", label=False), r"'label' is false, which marks a bad answer \(KTO\)"),
        (chat("a", "b", rejected="c"), "'rejected' is for preference training"),
        (chat("a", "b", rejected_response="c"), "'rejected_response' is for preference training"),
        (
            chat("<bbox>", "b", objects={"ref": [], "bbox": []}),
            "<bbox> 1 time, 'objects' has 0 in 'bbox'",
        ),
        (chat("a", "b", objects={"ref": ["x"], "bbox": []}), "<ref-object> 0 times, 'objects' has 1 in 'ref'"),
        (chat("<bbox>", "b", objects={"bbox": [[1, 2, 3, 4]]}), "'objects' holds boxes; set box_format"),
    ],
)
def test_what_cannot_be_honoured_is_refused(recipe: MakeRecipe, record: Any, complaint: str) -> None:
    with pytest.raises(FinetuneError, match=f"row 1.*{complaint}"):
        rows_of(recipe(), record)


def test_the_better_answer_is_read_where_the_columns_say_so(recipe: MakeRecipe) -> None:
    columns = {"prompt": "question", "response": "chosen"}
    record = {"question": "a?", "chosen": "good", "rejected": "bad"}
    (row,) = rows_of(recipe(), record, formatting="alpaca", columns=columns)
    assert row.messages[1]["content"][0]["text"] == "good"


def test_one_object_may_be_named_often(recipe: MakeRecipe) -> None:
    answer = '{"bbox_2d": <bbox>, "label": "<ref-object>"}'
    objects = {"ref": ["sheep"], "bbox": [[9.9, 1, 12, 6]]}
    (row,) = rows_of(recipe(box_format="original"), chat("Find the <ref-object>", answer, objects=objects))
    assert [message["content"][0]["text"] for message in row.messages] == [
        "Find the sheep", '{"bbox_2d": [9.9, 1, 12, 6], "label": "sheep"}',
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("objects", "complaint"),
    [
        ({"bbox": [[1, 2, 3]]}, r"a box is \[x1, y1, x2, y2\] and a point \[x, y\], not \[1, 2, 3\]"),
        ({"bbox": ["1,2"]}, "a box is"),
        ({"bbox": [[1, 2, 3, 4]], "bbox_type": "norm1"}, "the bbox_type 'norm1' is not supported"),
        ("all", "the text has <bbox>, but 'objects' is 'all'"),
    ],
)
def test_objects_that_are_none_are_named(recipe: MakeRecipe, objects: Any, complaint: str) -> None:
    with pytest.raises(FinetuneError, match=complaint):
        rows_of(recipe(box_format="original"), chat("<bbox>?", "b", objects=objects))


def test_a_column_that_no_row_has_is_an_error(recipe: MakeRecipe) -> None:
    complaint = "shapes.json: dataset_info.json names the column 'imgs', which no row has; rows have messages, images"
    with pytest.raises(FinetuneError, match=complaint):
        rows_of(recipe(), chat("a", "b", images=[]), columns={"images": "imgs"})


def test_fields_that_are_not_used_are_named(recipe: MakeRecipe, dataset: Path) -> None:
    write_dataset(dataset, [chat("a", "b", id=1), chat("a", "b", split="x")], formatting="openai")
    assert load_rows("shapes", recipe()).notes == ("shapes.json: not used: id, split",)


def test_half_a_character_is_read_as_the_replacement_character(recipe: MakeRecipe, dataset: Path) -> None:
    (dataset / "half.jsonl").write_text(json.dumps(chat("cut \ud83d", "whole \U0001f600")))
    (row,) = load_rows(str(dataset / "half.jsonl"), recipe()).rows
    assert [message["content"][0]["text"] for message in row.messages] == ["cut \ufffd", "whole \U0001f600"]
