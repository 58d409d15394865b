"""Optimizer and learning-rate schedule, as the recipe says."""

from __future__ import annotations

import math
from typing import Any

import torch
from rich.console import Console

from finetune.errors import FinetuneError
from finetune.model.tensors import shard_like
from finetune.recipe.schema import Recipe


def steps_per_epoch(recipe: Recipe, rows: int, processes: int = 1) -> int:
    """Optimiser steps of an epoch of so many rows; a rest of them still makes a step."""
    batches = math.ceil(rows / recipe.batch_size)
    return math.ceil(batches / (recipe.gradient_accumulation_steps * processes))


def total_steps(recipe: Recipe, rows: int, processes: int = 1) -> int:
    """Optimiser steps of a run over so many rows."""
    if recipe.max_steps > 0:
        return recipe.max_steps
    return math.ceil(recipe.num_train_epochs * steps_per_epoch(recipe, rows, processes))


def learning_rate(recipe: Recipe, step: int, total: int) -> float:
    """The learning rate of optimiser step `step`, counted from 0 (transformers, optimization.py)."""
    warmup = recipe.warmup_steps or math.ceil(recipe.warmup_ratio * total)
    if recipe.lr_scheduler_type == "constant":
        return recipe.learning_rate
    if step < warmup:
        return recipe.learning_rate * step / warmup
    done = (step - warmup) / max(1, total - warmup)
    if recipe.lr_scheduler_type == "cosine":
        return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
    if recipe.lr_scheduler_type == "linear":
        return recipe.learning_rate * max(0.0, 1 - done)
    return recipe.learning_rate


def make_optimizer(model: Any, recipe: Recipe, device: torch.device, console: Console) -> Any:
    """AdamW over the parameters that are trained; `ratio` in each group multiplies the learning rate (LoRA+).

    `paged_adamw_8bit` keeps its states in 8 bits and pages them out when GPU memory is short (arXiv:2110.02861,
    arXiv:2305.14314). Raises FinetuneError.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    slow = [p for name, p in trained if ".lora_B." not in name]
    fast = [p for name, p in trained if ".lora_B." in name]
    groups = [{"params": slow, "ratio": 1.0}, {"params": fast, "ratio": recipe.loraplus_lr_ratio or 1.0}]
    settings: dict[str, Any] = {
        "lr": recipe.learning_rate,
        "betas": (recipe.adam_beta1, recipe.adam_beta2),
        "eps": recipe.adam_epsilon,
        "weight_decay": recipe.weight_decay,
    }
    groups = [group for group in groups if group["params"]]
    if recipe.optim == "paged_adamw_8bit":
        if recipe.fsdp:
            raise FinetuneError("optim: paged_adamw_8bit cannot be sharded; with fsdp set optim: adamw_torch.")
        if device.type == "cuda":
            from bitsandbytes.optim import PagedAdamW8bit

            return PagedAdamW8bit(groups, **settings)
        console.print("optim: paged_adamw_8bit needs a GPU; adamw_torch is used instead.", highlight=False)
    return torch.optim.AdamW(groups, fused=True, **settings)


def load_optimizer(optimizer: Any, saved: dict[str, Any]) -> None:
    """Puts a whole state from a checkpoint back; under FSDP each process takes its share."""
    optimizer.load_state_dict(saved)
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, torch.Tensor):
                state[key] = shard_like(value, parameter)
