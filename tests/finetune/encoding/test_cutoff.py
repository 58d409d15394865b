"""Rows that are too long: left out, refused, or with smaller images; image tokens are never cut."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from finetune.errors import FinetuneError
from finetune.recipe.schema import Recipe
from finetune.training.dataset import load_training_data
from tests.support.finetune.shapes_data import ask, write_dataset

MakeRecipe = Callable[..., Recipe]
QUIET = Console(quiet=True)


@pytest.fixture
def long_row(dataset: Path) -> Path:
    """Three rows: short; with two images of 64 tokens each; with text alone that is too long."""
    row = ask("which?", "both", 0, 1)
    write_dataset(dataset, [ask("what?", "red", 0), row | {"images": ["images/a.png", "images/b.png"]},
                            ask("shape " * 200, "red", 0)])  # fmt: skip
    for name, seed in (("a", (256, 256)), ("b", (320, 200))):
        Image.effect_noise(seed, 90).convert("RGB").save(dataset / f"images/{name}.png")
    return dataset


def test_by_default_they_are_left_out(recipe: MakeRecipe, long_row: Path) -> None:
    data = load_training_data(recipe(cutoff_len=100), QUIET)
    assert [row.source for row in data.rows] == ["shapes.json, row 1"]
    assert data.dropped == 2


def test_as_errors_they_stop_the_run(recipe: MakeRecipe, long_row: Path) -> None:
    with pytest.raises(
        FinetuneError, match=r"shapes.json, row 2: the row has \d+ tokens, over cutoff_len 100 \(2 such"
    ):
        load_training_data(recipe(cutoff_len=100, cutoff_policy="error"), QUIET)


@pytest.mark.parametrize("cutoff", [40, 57, 73, 100, 130])
def test_shrunk_images_fit_and_are_what_the_model_gets(recipe: MakeRecipe, long_row: Path, cutoff: int) -> None:
    data = load_training_data(recipe(cutoff_len=cutoff, cutoff_policy="shrink"), QUIET)
    assert [row.source for row in data.rows] == ["shapes.json, row 1", "shapes.json, row 2"]
    assert data.dropped == 1
    row = data.rows[1]
    image = data.folder.config["image_token_id"]
    assert len(row) <= cutoff
    assert len(row) > cutoff - 24, "smaller than it must be"
    assert (row.ids == image).sum() == sum(data.bank.tokens(index) for index in row.images)
    with ThreadPoolExecutor(1) as pool:
        pixels, grids = data.bank.pixels(row.images, data.processor.image_processor, pool)
    assert [tuple(grid) for grid in grids.tolist()] == [data.bank.grids[index] for index in row.images]
    assert len(pixels) == sum(int(np.prod(data.bank.grids[index])) for index in row.images)
    assert all(data.bank.limits.min_pixels <= 256 * rows * columns for _, rows, columns in grids.tolist())


def test_images_below_the_models_least_are_not_made(recipe: MakeRecipe, long_row: Path) -> None:
    data = load_training_data(recipe(cutoff_len=24, cutoff_policy="shrink"), QUIET)
    assert [row.source for row in data.rows] == ["shapes.json, row 1"]
    assert data.dropped == 2
