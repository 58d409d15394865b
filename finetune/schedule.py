"""The learning rate by step: transformers' schedules as functions of the step, so there is no state to resume."""

from __future__ import annotations

import math

from finetune.recipe import Recipe


def steps_per_epoch(recipe: Recipe, rows: int, processes: int = 1) -> int:
    """Optimiser steps of an epoch of so many rows; a rest of them still makes a step."""
    batches = math.ceil(rows / recipe.per_device_train_batch_size)
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
