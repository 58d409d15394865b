"""Adapters with random matrices."""

from __future__ import annotations

from pathlib import Path

import torch

from finetune.model.base import load_base
from finetune.model.folder import open_base
from finetune.model.targets import add_adapters
from finetune.model.trained import save_trained, trained_state
from finetune.recipe.schema import Recipe

CPU = torch.device("cpu")


def random_adapter(recipe: Recipe, path: Path, size: float = 0.05) -> Path:
    """An adapter whose matrices are all random, as PEFT saves it."""
    model = add_adapters(load_base(open_base(recipe), recipe, CPU, torch.float32), recipe)
    torch.manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_magnitude" in name:
                parameter.mul_(1 + torch.rand_like(parameter))
            elif "lora_" in name:
                parameter.copy_(torch.randn_like(parameter) * size)
    path.mkdir()
    save_trained(model, trained_state(model), path)
    return path
