"""A trial trains rows, and leaves nothing of it behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from rich.console import Console

from finetune.families.registry import training_family
from finetune.memory.plan import Plan
from finetune.memory.trial import Trial
from finetune.model.base import load_base
from finetune.model.targets import make_trainable
from finetune.recipe.schema import Recipe
from finetune.training.dataset import load_training_data

CPU = torch.device("cpu")


@pytest.mark.parametrize(("size", "kept"), [(1, 4), (6, 0), (24, 2)])
def test_a_trial_leaves_the_run_as_it_was(recipe: Callable[..., Recipe], size: int, kept: int) -> None:
    made = recipe(lora_dropout=0.1, eval_dataset=None)
    data = load_training_data(made, Console(quiet=True))
    base = load_base(data.folder, made, CPU, torch.float32)
    model = make_trainable(base, made)
    family = training_family(model, data.folder, made)
    loss, rows = family.loss(base, 0.0), []

    def learn(batch: Any, images: Any) -> None:
        rows.append(len(batch.ids))
        loss(batch, images).backward()
        assert any(p.grad is not None for p in model.parameters())

    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    state = torch.get_rng_state()
    trial = Trial(base, data.rows, family.feed(base, data, []), CPU, learn, model.zero_grad)
    assert trial.speed(Plan(size, 1, kept, 4, 0.0)) > 0
    assert set(rows) == {size}
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters() if name in before)
    layers = base.model.language_model.layers
    assert [layer.gradient_checkpointing for layer in layers] == [number < 4 - kept for number in range(4)]
