"""The fast step against the models' own layers and PEFT's adapters under autograd, in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from finetune.compute.decoder import learn
from finetune.compute.fixed_inputs import Buffers
from finetune.families.batch import collate_train
from finetune.families.features import FrozenFeatures
from finetune.families.forward import LabelLoss
from finetune.model.base import load_base
from finetune.model.targets import make_trainable
from finetune.training.dataset import load_training_data
from tests.finetune.families.test_families import CPU, MakeRecipe, family, recipe_of

__all__ = ["family", "recipe_of"]


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


@pytest.mark.parametrize("keys", [{}, {"quantization_bit": 4}, {"lora_target": "q_proj,down_proj"}])
def test_loss_and_gradients_are_autograds(recipe_of: MakeRecipe, tmp_path: Path, keys: dict[str, Any]) -> None:
    model, base, batch, features = prepared(recipe_of(lora_dropout=0.0, **keys))
    loss = LabelLoss(base)(batch, features)
    (loss * 0.5).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    rows, length = batch.ids.shape
    config = base.config
    seen = torch.tensor([config.image_token_id, config.video_token_id])
    levels, hidden = features.shape[0], features.shape[2]
    buffers = Buffers(rows * (length + 7), len(batch.labels) + 3, levels, hidden, torch.float32, CPU)
    inputs = buffers.fill(batch, features, seen, length + 7, len(batch.labels) + 3)
    ours = learn(base, inputs, torch.tensor(0.5))
    assert torch.allclose(ours, loss, rtol=1e-5)
    for name, p in model.named_parameters():
        if p.requires_grad:
            assert torch.allclose(p.grad, expected[name], rtol=1e-3, atol=1e-5 * expected[name].abs().max()), name
