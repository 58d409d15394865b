"""Features that memory does not hold are kept in a file of the run, which no other run can read."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from finetune.families import feature_file, features
from finetune.families.feature_file import FeatureFile, file_for
from finetune.families.forward import LabelLoss
from finetune.recipe.schema import Recipe
from finetune.training.loop import train
from tests.support.finetune.runs import adapter

MakeRecipe = Callable[..., Recipe]
KEYS: dict[str, Any] = {"max_steps": 12, "eval_dataset": None, "save_steps": 4}


def count_towers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The images of every run of the vision tower."""
    seen: list[int] = []
    compute = features.FrozenFeatures._compute

    def watched(self: Any, images: tuple[int, ...]) -> Any:
        seen.extend(images)
        return compute(self, images)

    monkeypatch.setattr(features.FrozenFeatures, "_compute", watched)
    return seen


def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features.os, "sysconf", lambda name: 1)


def test_a_run_from_the_disk_is_the_run_from_memory(
    recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = train(recipe(**KEYS))
    no_memory(monkeypatch)
    seen = count_towers(monkeypatch)
    run = train(recipe(**KEYS, output_dir=str(tmp_path / "disk")))
    assert sorted(set(seen)) == list(range(8))
    assert len(seen[: seen.index(seen[0], 1)] if seen.count(seen[0]) > 1 else seen) == 8, "each image once in training"
    assert adapter(run.output_dir) == adapter(plain.output_dir)
    assert {path.name for path in Path(run.output_dir).iterdir()} == {
        path.name for path in Path(plain.output_dir).iterdir()
    }


def test_an_interrupted_run_goes_on_bit_for_bit(
    recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_memory(monkeypatch)
    unbroken = train(recipe(**KEYS))
    forward, calls = LabelLoss.forward, []

    def broken(self: LabelLoss, *args: Any) -> Any:
        calls.append(1)
        if len(calls) == 7:
            raise OSError("a worker died")
        return forward(self, *args)

    again = recipe(**KEYS, output_dir=str(tmp_path / "again"))
    with monkeypatch.context() as patch:
        patch.setattr(LabelLoss, "forward", broken)
        with pytest.raises(OSError, match="a worker died"):
            train(again)
    train(again)
    assert adapter(again.output_dir or "") == adapter(unbroken.output_dir)


def test_without_room_on_the_disk_features_are_computed_again(
    recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_memory(monkeypatch)
    monkeypatch.setattr(feature_file.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    seen = count_towers(monkeypatch)
    train(recipe(**KEYS))
    assert len(seen) > 2 * 8


def test_the_file_has_no_name_and_its_space_is_taken_beforehand(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    kept = FeatureFile(tmp_path, {3: (2, 5, 4), 1: (2, 1, 4)}, torch.bfloat16)
    assert not list(tmp_path.iterdir())
    values = {3: torch.randn(2, 5, 4).bfloat16(), 1: torch.randn(2, 1, 4).bfloat16()}
    assert 3 not in kept
    kept.update(values.items())
    kept.prefetch(1)
    assert all(index in kept and torch.equal(kept[index], value) for index, value in values.items())
    assert file_for(tmp_path, {0: (1, free, 1)}, torch.float32, 1) is None
    assert file_for(tmp_path, {0: (1, int(0.5 * free) // 4, 1)}, torch.float32, 2) is None
    assert file_for(None, {0: (1, 1, 1)}, torch.float32, 1) is None
