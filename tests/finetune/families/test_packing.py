"""Packed rows: the loss and the gradients of the rows one by one, with nothing padded but in attention."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from finetune.families.batch import collate_train
from finetune.families.registry import training_family
from finetune.model.attention import PACKED
from finetune.model.base import checkpoint_activations, load_base
from finetune.model.targets import make_trainable
from finetune.recipe.schema import Recipe
from finetune.training.dataset import load_training_data
from tests.support.finetune.families import FAMILIES, family_folder
from tests.support.finetune.pairs_data import DPO, write_pairs
from tests.support.finetune.shapes_data import ask, write_dataset

MakeRecipe = Callable[..., Recipe]
CPU = torch.device("cpu")
SEES = {"freeze_vision_tower": False, "freeze_multi_modal_projector": False}


def rows() -> list[dict[str, Any]]:
    """Of many lengths: without an image, with one or two, with two answers."""
    made = [ask("what is it? " * (number + 1), "a red rectangle " * (1 + number % 3), number) for number in range(4)]
    made.append(ask("hello", "hi there"))
    both = ask("which is red?", "the first", 2, 7)
    both["conversations"] += ask("sure?", "yes")["conversations"]
    made.append(both)
    return made


class Side:
    """A tiny model of a family with adapters that have learnt something, and what makes its batches."""

    def __init__(self, recipe: Recipe) -> None:
        self.data = load_training_data(recipe, Console(quiet=True))
        self.base = load_base(self.data.folder, recipe, CPU, torch.float32)
        torch.manual_seed(0)
        self.model = make_trainable(self.base, recipe)
        for name, parameter in self.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
        family = training_family(self.model, self.data.folder, recipe)
        self.feed = family.feed(self.base, self.data, [image for row in self.data.rows for image in row.images], True)
        self.loss = family.loss(self.base, 0.0)

    def learn(self, *batches: list[int]) -> tuple[float, dict[str, Any]]:
        """The summed loss of the batches of rows, and its gradients."""
        self.model.zero_grad()
        total = 0.0
        for numbers in batches:
            loss = self.loss(*self.feed.batch([self.data.rows[number] for number in numbers]))
            loss.backward()
            total += loss.item()
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        return total, {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in trained.items()}


@pytest.fixture(params=[*FAMILIES, "vision", "checkpointing"])
def side(request: pytest.FixtureRequest, recipe: MakeRecipe, dataset: Path, tmp_path: Path) -> Side:
    write_dataset(dataset, rows())
    family = request.param if request.param in FAMILIES else "qwen3_vl"
    keys = SEES if request.param == "vision" else {}
    folder = str(family_folder(family, tmp_path / family))
    made = Side(recipe(model_name_or_path=folder, eval_dataset=None, packing=True, **keys))
    if request.param == "checkpointing":
        checkpoint_activations(made.base)
    return made


def test_packed_rows_are_the_rows_one_by_one(side: Side) -> None:
    @settings(max_examples=12, deadline=None, database=None)
    @given(st.lists(st.sampled_from(range(6)), min_size=1, max_size=6))
    def holds(numbers: list[int]) -> None:
        together, theirs = side.learn(numbers)
        alone, ours = side.learn(*([number] for number in numbers))
        assert together == pytest.approx(alone, rel=1e-5)
        for name, gradient in ours.items():
            assert torch.allclose(theirs[name], gradient, rtol=1e-3, atol=1e-5 * len(numbers)), name

    holds()


def test_nothing_is_padded(side: Side) -> None:
    seen: list[tuple[int, int]] = []
    side.base.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"].shape[:2]), with_kwargs=True
    )
    side.learn(list(range(6)))
    single = [collate_train([row], CPU).ids.shape[1] for row in side.data.rows]
    assert seen == [(1, sum(single))]
    assert side.base.config._attn_implementation == PACKED


def test_packed_pairs_have_the_loss_of_padded_ones(recipe: MakeRecipe, tmp_path: Path) -> None:
    folder = str(write_pairs(tmp_path / "pairs"))
    found = []
    for packing in (False, True):
        side = Side(recipe(**DPO | {"dataset_dir": folder, "packing": packing}))
        found.append((*side.learn([0, 5, 1]), side.loss.measured))
    (loss, gradients, measured), (packed, theirs, also_measured) = found
    assert packed == pytest.approx(loss, rel=1e-5)
    assert also_measured == pytest.approx(measured, abs=1e-4)
    assert all(torch.allclose(theirs[name], gradient, rtol=1e-3, atol=1e-5) for name, gradient in gradients.items())
