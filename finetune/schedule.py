"""The learning rate by step: transformers' schedules as functions of the step, so there is no state to resume."""

from __future__ import annotations

import math

from finetune.recipe import Recipe


def total_steps(recipe: Recipe, batches: int) -> int:
    """Optimiser steps of a run whose epoch has `batches` forward passes; a rest of them still makes a step."""
    if recipe.max_steps > 0:
        return recipe.max_steps
    return math.ceil(recipe.num_train_epochs * math.ceil(batches / recipe.gradient_accumulation_steps))


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
