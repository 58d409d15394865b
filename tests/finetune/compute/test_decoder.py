"""The fast step against the models' own layers and PEFT's adapters under autograd, in float32."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from finetune.compute.decoder import LayeredStep, why_not
from finetune.compute.fixed_inputs import Buffers, rounded
from finetune.compute.host_stack import HostMemory
from finetune.families.batch import collate_train
from finetune.families.features import FrozenFeatures
from finetune.families.forward import LabelLoss
from finetune.model.base import dropout, load_base
from finetune.model.targets import make_trainable
from finetune.recipe.schema import Recipe
from finetune.training.dataset import load_training_data
from tests.support.finetune.families import FAMILIES, family_folder
from tests.support.finetune.shapes_data import ask, write_dataset

MakeRecipe = Callable[..., Recipe]
CPU = torch.device("cpu")


@pytest.fixture(params=FAMILIES)
def recipe_of(request: pytest.FixtureRequest, recipe: MakeRecipe, dataset: Path, tmp_path: Path) -> MakeRecipe:
    """Recipes for a tiny model of each family and chats of no, one and two images."""
    chats = [ask("what color is the shape?", "red", 0), ask("same color?", "no", 1, 3), ask("hello", "hi there")]
    write_dataset(dataset, [*chats, ask("and here?", "blue", 5, 2, 7)])
    folder = family_folder(request.param, tmp_path / request.param)
    return lambda **keys: recipe(**{"model_name_or_path": str(folder)} | keys)


def prepared(recipe: Any) -> tuple[Any, Any, Any, Any]:
    """A model with adapters that do something, a batch of all rows, its features."""
    data = load_training_data(recipe, Console(quiet=True))
    base = load_base(data.folder, recipe, CPU, torch.float32)
    model = make_trainable(base, recipe)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    used = [image for row in data.rows for image in row.images]
    features = FrozenFeatures(base, data.bank, data.processor, used, reused=True)
    batch = collate_train(data.rows, CPU)
    return model, base, batch, features.get(batch.images)


def buffers_for(base: Any, batch: Any, features: Any) -> Buffers:
    """Room for the batch and more, so that it is padded."""
    rows, length = batch.ids.shape
    return Buffers(rows, length + 7, len(batch.labels), len(features), features.shape[2], torch.float32, CPU)


@pytest.mark.parametrize("kept_layers", [0, 1, 2])
@pytest.mark.parametrize("keys", [{}, {"quantization_bit": 4}, {"lora_target": "q_proj,down_proj"}])
def test_loss_and_gradients_are_autograds(recipe_of: MakeRecipe, keys: dict[str, Any], kept_layers: int) -> None:
    model, base, batch, features = prepared(recipe_of(lora_dropout=0.0, **keys))
    loss = LabelLoss(base)(batch, features)
    (loss * 0.5).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    buffers = buffers_for(base, batch, features)
    assert why_not(base) == ""
    ours = LayeredStep(base, kept_layers).learn(buffers.put(batch, features), torch.tensor(0.5))
    assert torch.allclose(ours, loss, rtol=1e-5)
    for name, p in model.named_parameters():
        if p.requires_grad:
            assert torch.allclose(p.grad, expected[name], rtol=1e-3, atol=1e-5 * expected[name].abs().max()), name


@pytest.mark.parametrize("kept_layers", [0, 1])
def test_inputs_that_waited_in_host_memory_give_the_same_bits(recipe_of: MakeRecipe, kept_layers: int) -> None:
    model, base, batch, features = prepared(recipe_of(lora_dropout=0.1))
    inputs = buffers_for(base, batch, features).put(batch, features)
    count = len(base.model.language_model.layers) - kept_layers
    host = HostMemory(count, inputs.ids.numel() * features.shape[2] + 5, torch.float32, CPU)
    found = []
    for memory in (None, host, host):
        step = LayeredStep(base, kept_layers, memory)
        torch.manual_seed(1)
        step.reseed()
        loss = step.learn(inputs, torch.tensor(0.5))
        found.append([loss, *(p.grad.clone() for p in model.parameters() if p.requires_grad)])
        model.zero_grad()
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("kept_layers", [0, 1])
def test_dropout_draws_the_same_twice_and_its_gradient_is_the_losss(recipe_of: MakeRecipe, kept_layers: int) -> None:
    model, base, batch, features = prepared(recipe_of(lora_dropout=0.3))
    buffers, step = buffers_for(base, batch, features), LayeredStep(base, kept_layers)
    inputs = buffers.put(batch, features)
    dropout(model, False)
    without = float(LabelLoss(base)(batch, features).detach())
    dropout(model, True)

    def loss() -> float:
        torch.manual_seed(1)
        step.reseed()
        return float(step.learn(inputs, torch.tensor(1.0)))

    first = loss()
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = [p.grad.clone() for p in trained]
    assert loss() == first
    assert first != pytest.approx(without, rel=1e-4)
    slope, size = sum(float((g * g).sum()) for g in gradients), 2e-4
    scale = size / slope**0.5
    ends = []
    for sign in (1, -2):
        with torch.no_grad():
            for p, g in zip(trained, gradients, strict=True):
                p += sign * scale * g
        ends.append(loss())
    assert (ends[0] - ends[1]) / (2 * scale) == pytest.approx(slope, rel=0.02)


def test_dropout_draws_anew_for_every_micro_batch(recipe_of: MakeRecipe) -> None:
    _, base, batch, features = prepared(recipe_of(lora_dropout=0.3))
    inputs, step = buffers_for(base, batch, features).put(batch, features), LayeredStep(base)
    losses = set()
    for _ in range(3):
        step.reseed()
        losses.add(float(step.learn(inputs, torch.tensor(1.0))))
    assert len(losses) == 3


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"freeze_vision_tower": False}, "visual.* is trained"),
        ({"additional_target": "embed_tokens"}, "embed_tokens.* is trained"),
        ({"use_dora": True}, "of a kind of its own|magnitude.* is trained"),
        ({"flash_attn": "disabled"}, "attention is eager"),
    ],
)
def test_what_it_cannot_train_is_named(recipe_of: MakeRecipe, keys: dict[str, Any], reason: str) -> None:
    recipe = recipe_of(**keys)
    data = load_training_data(recipe, Console(quiet=True))
    base = load_base(data.folder, recipe, CPU, torch.float32)
    make_trainable(base, recipe)
    assert re.search(reason, why_not(base))


def test_a_batch_larger_than_was_foreseen_does_not_fit(recipe_of: MakeRecipe) -> None:
    _, base, batch, features = prepared(recipe_of())
    rows, length = batch.ids.shape
    small = Buffers(rows, length // 2, len(batch.labels), len(features), features.shape[2], torch.float32, CPU)
    assert not small.fits(batch)
    assert buffers_for(base, batch, features).fits(batch)


def test_rows_are_padded_by_a_sixteenth_at_most() -> None:
    for length in range(1, 5000, 7):
        padded = rounded(length, 5000)
        assert length <= padded <= max(length + 8, length * 17 / 16)
    assert rounded(2465, 2465) == 2472


def test_coarse_buffers_have_half_as_many_lengths_and_labels_few_numbers() -> None:
    fine, coarse = (Buffers(1, 4000, 3000, 1, 8, torch.float32, CPU) for _ in range(2))
    coarse.coarse = True
    counts, padded = [], []
    for buffers in (fine, coarse):
        padded = [buffers.padded(1, length, 1)[1] for length in range(1, 4001)]
        counts.append(len(set(padded)))
    assert counts[1] < 0.6 * counts[0]
    assert all(own <= length <= max(own + 8, own * 9 / 8) for own, length in enumerate(padded, 1))
    labels = [fine.padded(1, 8, count)[2] for count in (0, 64, 65, 256, 257, 1025, 3000)]
    assert labels == [64, 64, 256, 256, 1024, 3000, 3000]


def test_features_of_an_earlier_batch_are_nothing_to_one_without_images(recipe_of: MakeRecipe) -> None:
    recipe = recipe_of(lora_dropout=0.0)
    _, base, batch, features = prepared(recipe)
    rows = [row for row in load_training_data(recipe, Console(quiet=True)).rows if not row.images]
    text, buffers = collate_train(rows, CPU), buffers_for(base, batch, features)
    buffers.put(batch, features * 1e3)
    ours = LayeredStep(base).learn(buffers.put(text, None), torch.tensor(1.0))
    assert torch.allclose(ours, LabelLoss(base)(text, None), rtol=1e-5)
