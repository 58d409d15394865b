"""`lensmith eval` with stage dpo, and what `lensmith check` says of pairs and their memory."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from finetune.data.datasets import load_rows
from finetune.errors import FinetuneError
from finetune.evaluation.preferences import evaluate_preferences
from finetune.families.qwen_vl import QwenVL
from finetune.memory.cards import Card
from finetune.memory.estimate import estimate
from finetune.memory.heaviest_load import heaviest_load
from finetune.model.folder import open_base
from finetune.preflight.check import check_recipe
from finetune.preflight.report import Report
from finetune.recipe.schema import Recipe
from finetune.training.loop import train
from tests.support.finetune.pairs_data import DPO, prefer, write_pairs
from tests.support.finetune.shapes_data import write_dataset

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def make(recipe: MakeRecipe, tmp_path: Path) -> MakeRecipe:
    folder = str(write_pairs(tmp_path / "pairs"))
    return lambda **keys: recipe(**DPO | {"dataset_dir": folder} | keys)


@pytest.mark.parametrize("loss", ["sigmoid", "simpo"])
def test_eval_finds_the_preference_that_training_taught(loss: str, make: MakeRecipe, tmp_path: Path) -> None:
    train(make(max_steps=10, pref_loss=loss))
    keys: dict[str, Any] = {"eval_dataset": "pairs", "pref_loss": loss}
    before = evaluate_preferences(make(output_dir=str(tmp_path / "before"), **keys))
    adapter = str(tmp_path / "out")
    after = evaluate_preferences(make(adapter_name_or_path=adapter, output_dir=str(tmp_path / "after"), **keys))
    assert after.n == 24
    assert after.accuracy.mean >= 0.8
    assert after.margin.mean > before.margin.mean
    assert after.likelier.mean >= before.likelier.mean
    if loss == "sigmoid":
        assert before.margin.mean == 0  # the base is its own reference
    lines = (tmp_path / "after" / "preferences.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    assert first["row"] == "pairs.json, row 1"
    margins = [json.loads(line)["chosen_reward"] - json.loads(line)["rejected_reward"] for line in lines]
    assert sum(margins) / 24 == pytest.approx(after.margin.mean)


def test_eval_refuses_pairs_that_are_too_long(make: MakeRecipe, tmp_path: Path) -> None:
    with pytest.raises(FinetuneError, match=r"row .*: question and answers have .* tokens, over cutoff_len 9"):
        evaluate_preferences(make(eval_dataset="pairs", cutoff_len=9))


def checked(recipe: Recipe) -> tuple[str, Report]:
    out = io.StringIO()
    report = Report(Console(file=out, width=200))
    check_recipe(recipe, report, card=Card("t4", 14.6, (7, 5)))
    return " ".join(out.getvalue().split()), report


def test_check_says_what_pairs_there_are(make: MakeRecipe) -> None:
    said, report = checked(make())
    assert not report.problems
    assert "24 pairs; chosen answers have" in said
    assert report.figures["pairs"]["pairs"] == 24


def test_check_warns_of_pairs_that_teach_nothing_or_length_alone(make: MakeRecipe, tmp_path: Path) -> None:
    rows = [prefer("what is it?", "a red rectangle, I would say", "a hat", n % 8) for n in range(30)]
    write_dataset(tmp_path / "pairs", [*rows, prefer("what is it?", "a hat", "a hat", 0)], "long", ranking=True)
    said, _ = checked(make(dataset="long"))
    assert "1 pair has the same answer twice, which teaches nothing: long.json, row 31" in said
    assert "the chosen answer is the longer one in 97%" in said


def test_a_pair_counts_as_two_rows_whose_images_go_through_the_tower_once(make: MakeRecipe) -> None:
    recipe = make(per_device_train_batch_size=1)
    folder = open_base(recipe)
    reader = QwenVL().read(folder, recipe)
    rows = reader.encoder.encode(load_rows("pairs", recipe).rows)
    load = heaviest_load(rows, recipe, reader.bank)
    tokens = max(sum(reader.bank.tokens(image) for image in row.images) for row in rows)
    assert load.rows == 2
    assert load.image_tokens == 2 * tokens
    assert load.patches == tokens * reader.bank.limits.merge**2
    assert load.tokens < 2 * max(map(len, rows))
    card = Card("a GPU", 80, (8, 0))
    kept = recipe.model_copy(update={"adapter_name_or_path": "before"})
    assert estimate(folder, kept, load, card).reserved > estimate(folder, recipe, load, card).reserved
