"""The frozen tower on images in groups gives the features of each image alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from finetune.compute import vision
from finetune.compute.vision import Layouts, Tower, chunks
from finetune.families.forward import encode_images
from finetune.model.base import load_base
from finetune.model.folder import open_base
from finetune.recipe.schema import Recipe
from tests.support.finetune.families import FAMILIES, family_folder

MakeRecipe = Callable[..., Recipe]
CPU = torch.device("cpu")
GRIDS = [(1, 4, 6), (1, 2, 2), (1, 8, 4), (1, 2, 2), (2, 4, 4), (1, 4, 6)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("together", [8, 40, 4096])
def test_features_are_those_of_each_image_alone(
    family: str, together: int, recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vision, "CHUNK_PATCHES", together)
    made = recipe(model_name_or_path=str(family_folder(family, tmp_path / family)))
    base = load_base(open_base(made), made, CPU, torch.float32)
    config = base.config.vision_config
    size = 3 * config.temporal_patch_size * config.patch_size**2
    counts = [math.prod(grid) for grid in GRIDS]
    patches = torch.randn(sum(counts), size)
    alone = [
        encode_images(base, part, grid_thw=torch.tensor([grid]))
        for part, grid in zip(patches.split(counts), GRIDS, strict=True)
    ]
    expected = torch.cat(alone, dim=1)
    tower = Tower(base.model.visual, lambda pixels, **layout: encode_images(base, pixels, **layout), CPU)
    room = torch.zeros_like(expected)
    for target in (None, room, room):
        found = tower(patches, GRIDS, target)
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
        assert target is None or found is room


def test_a_group_has_no_more_patches_than_go_at_once_but_for_a_single_image() -> None:
    grids = [(1, 32, 32)] * 5 + [(1, 100, 100), (1, 2, 2)]
    groups = chunks(grids)
    assert [grid for group in groups for grid in grids[group]] == grids
    assert [len(grids[group]) for group in groups] == [4, 1, 1, 1]


def test_layouts_that_were_used_last_are_remembered_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vision, "LAYOUTS", 2)
    layouts = Layouts(torch.nn.Identity(), CPU)
    times = [layouts.of(((1, 2, rows),))[1] for rows in (2, 4, 2, 6, 2, 4)]
    assert times == [1, 1, 2, 1, 3, 1]
