"""Boxes reach the model in the coordinates that it was made for."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from finetune.data.datasets import load_rows
from finetune.encoding.boxes import boxes_in, place_boxes
from finetune.encoding.chat_encoder import ChatEncoder
from finetune.errors import FinetuneError
from finetune.families.registry import family_of
from finetune.model.folder import open_base
from finetune.preflight.check import check_recipe
from finetune.preflight.report import Report
from finetune.recipe.schema import Recipe
from finetune.training.dataset import load_training_data
from tests.support.finetune.families import family_folder
from tests.support.finetune.shapes_data import write_dataset

MakeRecipe = Callable[..., Recipe]
BOX = [60, 40, 150, 120]
LIMIT = 64 * 28 * 28


def box_row(answer: str, images: int = 1, question: str = "find it") -> dict[str, Any]:
    asked = {"role": "user", "content": "<image>" * images + question}
    return {
        "messages": [asked, {"role": "assistant", "content": answer}],
        "images": ["images/big.png", "images/0.png"][:images],
    }


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = family_folder(family, tmp_path_factory.mktemp(family) / family)
        return made[family]

    return folder


def placed(recipe: Recipe, *records: Any) -> list[str]:
    """The last answers as the model gets them."""
    data = Path(recipe.dataset_dir)
    write_dataset(data, list(records), formatting="openai")
    Image.new("RGB", (640, 480), "white").save(data / "images/big.png")
    reader = family_of(folder := open_base(recipe)).read(folder, recipe)
    rows = place_boxes(load_rows("shapes", recipe).rows, reader.encoder, folder.model_type, recipe)
    return [row.messages[-1]["content"][0]["text"] for row in rows]


def resized(recipe: Recipe) -> tuple[int, int]:
    reader = family_of(folder := open_base(recipe)).read(folder, recipe)
    assert isinstance(reader.encoder, ChatEncoder)
    limits = reader.encoder.bank.limits
    _, rows, columns = limits.grid(640, 480)
    return columns * limits.patch, rows * limits.patch


def moved(before: tuple[int, int], after: tuple[int, int]) -> list[int]:
    return [round(value * after[n % 2] / before[n % 2]) for n, value in enumerate(BOX)]


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen2_vl", "qwen3_vl"])
@pytest.mark.parametrize("given", ["original", "resized", "relative"])
def test_boxes_are_moved_to_the_models_coordinates(
    recipe: MakeRecipe, families: Callable[[str], Path], family: str, given: str
) -> None:
    ours = recipe(model_name_or_path=str(families(family)), box_format=given, image_max_pixels=4 * LIMIT)
    sides = {"original": (640, 480), "resized": resized(ours), "relative": (1000, 1000)}
    wanted = "resized" if family == "qwen2_5_vl" else "relative"
    expected = BOX if given == wanted else moved(sides[given], sides[wanted])
    (answer,) = placed(ours, box_row(json.dumps({"bbox_2d": BOX, "label": "sheep"})))
    assert json.loads(answer) == {"bbox_2d": expected, "label": "sheep"}


def test_boxes_are_text_without_a_box_format(recipe: MakeRecipe) -> None:
    assert placed(recipe(), box_row("[1, 2, 3, 9999]")) == ["[1, 2, 3, 9999]"]


def test_boxes_are_found_however_they_are_written(recipe: MakeRecipe) -> None:
    written = '<|box_start|>(64,48),(640.0, 480)<|box_end|> {"point_2d": [320, 240]} [1, 2] [64,48,128,96] (7)'
    (answer,) = placed(recipe(box_format="original"), box_row(written))
    moved = '<|box_start|>(100,100),(1000, 1000)<|box_end|> {"point_2d": [500, 500]} [1, 2] [100,100,200,200] (7)'
    assert answer == moved
    assert list(boxes_in(answer)) == [[100, 100, 1000, 1000], [500, 500], [100, 100, 200, 200]]


@pytest.mark.parametrize(
    ("given", "record", "complaint"),
    [
        ("original", box_row("[0, 0, 641, 10]"), r"row 1: the box \[0, 0, 641, 10\] is not within 640x480"),
        ("relative", box_row("[0, 0, 1001, 10]"), "is not within 1000x1000, .* with box_format: relative"),
        ("original", box_row("[0, -1, 1, 1]"), "is not within"),
        (
            "original",
            box_row("[0, 0, 1, 1]", 2),
            "2 images of different sizes, so which image a box is in",
        ),
    ],
)
def test_a_box_that_cannot_be_moved_is_named(recipe: MakeRecipe, given: str, record: Any, complaint: str) -> None:
    with pytest.raises(FinetuneError, match=complaint):
        placed(recipe(box_format=given), record)
    if "2 images" in complaint:
        assert placed(recipe(box_format="relative"), record) == ["[0, 0, 1, 1]"]


def test_what_box_format_cannot_do_is_refused(recipe: MakeRecipe, families: Callable[[str], Path]) -> None:
    shrinks = recipe(model_name_or_path=str(families("qwen2_5_vl")), box_format="original", cutoff_policy="shrink")
    with pytest.raises(FinetuneError, match="cutoff_policy: shrink cannot resize it further"):
        placed(shrinks, box_row("a"))


def test_training_reads_the_boxes_that_were_moved(recipe: MakeRecipe) -> None:
    ours = recipe(box_format="original", eval_dataset=None)
    placed(ours, box_row("[64, 48, 128, 96]"), box_row("[64, 48, 128, 96]", question="again"))
    data = load_training_data(ours, Console(quiet=True))
    answers = [data.processor.tokenizer.decode(row.ids[row.labelled]) for row in data.rows]
    assert answers == ["[100, 100, 200, 200]<|im_end|>\n"] * 2


@pytest.mark.parametrize("text", ["<|object_ref_start|>a sheep<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|>"])
def test_grounding_tokens_are_text(recipe: MakeRecipe, text: str) -> None:
    placed(recipe(), box_row(text), box_row(text, question=text))
    data = load_training_data(recipe(eval_dataset=None), Console(quiet=True))
    assert data.processor.tokenizer.decode(data.rows[1].ids[data.rows[1].labelled]) == text + "<|im_end|>\n"


def test_check_draws_the_first_rows_with_their_boxes(recipe: MakeRecipe) -> None:
    placed(recipe(), box_row("[64, 48, 128, 96]"))
    out = io.StringIO()
    assert check_recipe(recipe(box_format="original", eval_dataset=None), Report(Console(file=out, width=300)))
    folder = re.search(r"1 row has boxes; those of the first 1 are drawn in (\S+)", out.getvalue())
    assert folder
    with Image.open(Path(folder[1]) / "row-1.png") as image:
        pixels = np.asarray(image)
    magenta = np.argwhere((pixels == (255, 0, 255)).all(axis=-1))
    assert magenta.min(axis=0).tolist() == [48, 64]
    assert magenta.max(axis=0).tolist() == [96, 128]


def test_check_warns_of_boxes_that_are_not_moved(recipe: MakeRecipe) -> None:
    placed(recipe(), box_row("[64, 48, 128, 96]"))
    out = io.StringIO()
    assert check_recipe(recipe(eval_dataset=None), Report(Console(file=out, width=500)))
    assert "1 row seems to have boxes, such as [64.0, 48.0, 128.0, 96.0] in shapes.json, row 1" in out.getvalue()
    assert "qwen3_vl reads 0 to 1000: set box_format" in out.getvalue()
