"""Memory holds no rows: each further one costs check, train and eval some numbers, not its text or its tokens."""

from __future__ import annotations

import gc
import json
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from finetune.data.tables import read_file, rows
from finetune.encoding import chat_encoder, encode_rows
from finetune.encoding.encoded import Encoded
from finetune.evaluation import evaluate as evaluation
from finetune.families.qwen_vl import QwenFeed
from finetune.memory.heaviest_load import heaviest_load
from finetune.preflight.check import check_recipe
from finetune.preflight.report import Report
from finetune.recipe.schema import Recipe
from finetune.training.dataset import load_training_data, split_by_image
from finetune.training.order import step_windows
from tests.support.finetune.pairs_data import DPO
from tests.support.finetune.shapes_data import ask

MakeRecipe = Callable[..., Recipe]
WORDS = "is the large red square left of the small green circle or above it " * 12
FEW, MANY = 60, 260


def growth(run: Callable[[int], Any], few: int = FEW, many: int = MANY) -> float:
    """Bytes of Python's and numpy's that each row adds to the peak of run(number of rows)."""
    run(few)  # what is imported and cached once
    peaks, often = [], gc.get_threshold()
    for count in (few, many):
        gc.set_threshold(700, 10, 10)  # as in a run; in tests more waits for the collector, and would count
        gc.collect()
        tracemalloc.start()
        try:
            run(count)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
            gc.set_threshold(*often)
    return (peaks[1] - peaks[0]) / (many - few)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both numbers of rows are many blocks, so that what is held of one block does not count."""
    for module, name in ((read_file, "TASK_ROWS"), (rows, "READ_ROWS"), (encode_rows, "TASK_ROWS")):
        monkeypatch.setattr(module, name, 16)
    monkeypatch.setattr(read_file, "READ_BYTES", 2**10)
    monkeypatch.setattr(evaluation, "SCORED", 16)
    monkeypatch.setattr(chat_encoder, "KEPT", 16)


def write(dataset: Path, count: int, stage: str = "sft") -> str:
    """A file of so many rows; of pairs for stage dpo."""
    path = dataset / f"{count}.jsonl"
    with path.open("w") as file:
        for number in range(count):
            row = ask(f"{number} {WORDS}?", f"yes {number}", number % 8)
            if stage == "dpo":
                row |= {"conversations": row["conversations"][:1], "chosen": f"yes {WORDS}", "rejected": "no"}
            file.write(json.dumps(row) + "\n")
    return str(path)


def test_eval_holds_no_rows(
    recipe: MakeRecipe, dataset: Path, tmp_path: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answers(
        self: QwenFeed, prompts: Sequence[Encoded], max_new_tokens: int, size: int | None = None
    ) -> Iterator[tuple[int, list[int]]]:
        return ((index, prompts[index].ids[:3].tolist()) for index in range(len(prompts)))

    monkeypatch.setattr(QwenFeed, "generate", answers)

    paths = {count: write(dataset, count) for count in (FEW, MANY)}

    def run(count: int) -> None:
        keys = {"eval_dataset": paths[count], "output_dir": str(tmp_path / str(count))}
        result = evaluation.evaluate(
            recipe(overwrite_output_dir=True, preprocessing_num_workers=1, **keys), Console(quiet=True)
        )
        assert result.n == count

    assert growth(run) < 2000, "a row's prompt has about 200 tokens: 6,600 bytes with their positions, and its text 800"


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_check_holds_no_rows(stage: str, recipe: MakeRecipe, dataset: Path, small_blocks: None) -> None:
    paths = {count: write(dataset, count, stage) for count in (FEW, MANY)}

    def run(count: int) -> None:
        keys: dict[str, Any] = DPO if stage == "dpo" else {}
        keys = keys | {"dataset": paths[count], "eval_dataset": None, "preprocessing_num_workers": 1}
        assert check_recipe(recipe(**keys), Report(Console(quiet=True)))

    assert growth(run) < 2000


@pytest.mark.parametrize("grouped", [False, True])
def test_the_order_of_rows_is_numbers(grouped: bool, recipe: MakeRecipe) -> None:
    made = recipe(eval_dataset=None, group_by_length=grouped, per_device_train_batch_size=2)
    data = load_training_data(made, Console(quiet=True))

    def run(count: int) -> None:
        some = data.rows.take(np.resize(np.arange(len(data.rows)), count))
        next(step_windows(some, made, 0))
        heaviest_load(some, made, data.bank)

    assert growth(run, 20_000, 60_000) < 80, "as lists they take 96 to 120 bytes a row"


def test_rows_are_split_by_numbers(recipe: MakeRecipe) -> None:
    made = recipe(eval_dataset=None)
    data = load_training_data(made, Console(quiet=True))

    def run(count: int) -> None:
        some = data.rows.take(np.resize(np.arange(len(data.rows)), count))
        train, held_out = split_by_image(some, data.bank.paths, 0.2, 0)
        assert len(train) + len(held_out) == count

    assert growth(run, 20_000, 60_000) < 100, "as lists they take 112 bytes a row"
