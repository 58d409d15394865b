"""Rows that are too long: left out, refused, or with smaller images; image tokens are never cut."""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from finetune.encoding.cutoff import CutoffResult
from finetune.encoding.encoded import Encoded
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


def warned(recipe: Recipe) -> str:
    console = Console(file=io.StringIO(), width=1000)
    load_training_data(recipe, console)
    (line,) = (line for line in console.file.getvalue().splitlines() if "cutoff_len" in line)
    return line


def test_the_user_is_told_of_the_longest_row_and_how_many_do_not_fit(
    recipe: MakeRecipe, dataset: Path, long_row: Path
) -> None:
    assert "2 of 3 rows are longer than cutoff_len 100 (the longest has" in warned(recipe(cutoff_len=100))
    line = warned(recipe(cutoff_len=100, cutoff_policy="shrink"))
    assert "images of 1 row are shrunk" in line
    assert ", 1 are left out" in line
    write_dataset(dataset, [ask("what?", "red", 0), ask("which?", "both", 0, 1)
                            | {"images": ["images/a.png", "images/b.png"]}])  # fmt: skip
    longest = len(load_training_data(recipe(), QUIET).rows[1])
    line = warned(recipe(cutoff_len=longest - 1))
    assert f"1 of 2 rows are longer than cutoff_len {longest - 1} (the longest has {longest} tokens, 124 of" in line
    assert len(load_training_data(recipe(cutoff_len=longest), QUIET).rows) == 2, "just cutoff_len tokens fit"


def test_as_errors_they_stop_the_run(recipe: MakeRecipe, long_row: Path) -> None:
    with pytest.raises(
        FinetuneError,
        match=r"shapes.json, row 2: the row has \d+ tokens, over cutoff_len 100 \(2 such rows\); raise cutoff_len, "
        "lower image_max_pixels, or set cutoff_policy: drop or shrink",
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


@pytest.mark.parametrize("cutoff", [30, 40, 73, 100])
def test_shrunk_images_are_the_largest_that_fit(recipe: MakeRecipe, long_row: Path, cutoff: int) -> None:
    data = load_training_data(recipe(cutoff_len=cutoff, cutoff_policy="shrink"), QUIET)
    row, bank, limits = data.rows[1], data.bank, data.bank.limits
    text = len(row) - sum(bank.tokens(index) for index in row.images)
    pixels = (limits.patch * limits.merge) ** 2  # of a token
    lengths = [
        text + sum(limits.tokens(replace(limits, max_pixels=most * pixels).grid(*bank.sizes[at])) for at in row.images)
        for most in range(-(-limits.min_pixels // pixels), limits.max_pixels // pixels + 1)
    ]
    assert len(row) == max(length for length in lengths if length <= cutoff)
    again = load_training_data(recipe(cutoff_len=len(row), cutoff_policy="shrink"), QUIET)
    assert len(again.rows[1]) == len(row), "a row of just cutoff_len tokens fits"


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, ""),
        (
            {"dropped": 2},
            "2 of 3 rows are longer than cutoff_len 100 (the longest has 120 tokens, 80 of them images') and are left "
            "out; set cutoff_len: 120, a smaller image_max_pixels, or cutoff_policy: shrink.",
        ),
        (
            {"dropped": 2, "videos": True},
            "2 of 3 rows are longer than cutoff_len 100 (the longest has 120 tokens, 80 of them images and videos') "
            "and are left out; set cutoff_len: 120, a smaller video_max_pixels or video_maxlen, or cutoff_policy: "
            "shrink.",
        ),
        (
            {"dropped": 2, "longest_images": 0},
            "2 of 3 rows are longer than cutoff_len 100 (the longest has 120 tokens, 0 of them images') and are left "
            "out; set cutoff_len: 120.",
        ),
        (
            {"dropped": 2, "resizes": False},
            "2 of 3 rows are longer than cutoff_len 100 (the longest has 120 tokens, 80 of them images') and are left "
            "out; set cutoff_len: 120.",
        ),
        (
            {"shrunk": 2},
            "the images of 2 rows are shrunk to fit cutoff_len 100 (the longest has 120 tokens, 80 of them images'); "
            "a server will see such images larger than training did.",
        ),
        (
            {"shrunk": 2, "dropped": 1},
            "the images of 2 rows are shrunk to fit cutoff_len 100 (the longest has 120 tokens, 80 of them images'), "
            "1 are left out as they are too long even so; a server will see such images larger than training did.",
        ),
    ],
)
def test_the_warning_says_what_happened_and_what_to_change(
    recipe: MakeRecipe, keys: dict[str, Any], expected: str
) -> None:
    fits = Encoded(np.zeros(3, np.int64), np.zeros(3, bool), np.zeros((3, 3), np.int64), (), "row 1")
    facts: dict[str, Any] = {"dropped": 0, "shrunk": 0, "longest_images": 80, "videos": False, "resizes": True}
    assert CutoffResult([fits], longest=120, **(facts | keys)).warning(recipe(cutoff_len=100)) == expected
