"""Fixtures: a small dataset of drawn shapes and recipes for it; the model is the repository's own, on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune.recipe.load import make_recipe
from finetune.recipe.schema import Recipe
from tests.support.finetune.shapes_data import COLOURS, ask, write_dataset
from tests.support.paths import SHAPES_VL


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """24 rows: three questions for each of eight images."""
    rows = []
    for number in range(8):
        colour = COLOURS[number // 2]
        rows.append(ask("what color is the shape?", colour, number))
        rows.append(ask(f"is there a {colour} shape in the image?", "yes", number))
        rows.append(ask("what is it?", f"a {colour} rectangle", number))
    return write_dataset(tmp_path / "data", rows)


@pytest.fixture
def recipe(dataset: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """Makes a recipe for the dataset; keyword arguments change its keys."""

    def make(**keys: Any) -> Recipe:
        values = {
            "model_name_or_path": str(SHAPES_VL),
            "dataset": "shapes",
            "eval_dataset": "shapes",
            "dataset_dir": str(dataset),
            "output_dir": str(tmp_path / "out"),
            "lora_rank": 4,
            "learning_rate": 2e-3,
            "per_device_train_batch_size": 4,
            "max_steps": 4,
            "logging_steps": 1,
            "report_to": "none",
            "plot_loss": False,
            "max_new_tokens": 8,
        }
        return make_recipe(values | keys)

    return make
