"""The recipe that a goal asks for: quick to see whether it learns, balanced, or best with what the card holds."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

from finetune.preflight.starter import ENOUGH_ROWS, PIXELS, STEP_ROWS, VALIDATED_ROWS
from studio.workspace.models import TINY

Goal = Literal["quick", "balanced", "best"]
GOALS: tuple[Goal, ...] = get_args(Goal)

SAMPLES = 4  # validation rows whose answers the page Runs shows as they change
QUICK_STEPS = 150  # of the demo's model: about a minute on two cores
RANK: dict[Goal, int] = {"quick": 8, "balanced": 16, "best": 32}
EPOCHS: dict[Goal, tuple[int, int]] = {"quick": (3, 10), "balanced": (3, 10), "best": (5, 15)}  # many rows, few rows
BITS_16 = 6.0  # bytes of a card's memory a parameter, from which 16-bit weights leave room to train


def goal_values(
    goal: Goal, *, rows: int, parameters: int, card_gib: float | None, validation: str | None, gpus: int = 1
) -> dict[str, Any]:
    """The keys of a recipe that differ from its defaults, in the order in which people read them.

    rows: to train on, before some are held out; parameters: of the base model, 0 if unknown; card_gib: of the GPU, None
    for a processor; validation: the dataset to validate on, None to hold out a part; gpus: how many share each step.
    """
    tiny = 0 < parameters < TINY
    values: dict[str, Any] = {"stage": "sft", "finetuning_type": "lora", "lora_target": "all", "lora_rank": RANK[goal]}
    if card_gib is not None and not tiny and not _fits_in_16_bits(goal, parameters, card_gib):
        values["quantization_bit"] = 4
    values |= {"image_max_pixels": PIXELS, "cutoff_len": 2048}
    held_out = validation is not None or rows >= VALIDATED_ROWS
    if validation is not None:
        values["eval_dataset"] = validation
    elif held_out:
        values["val_size"] = 0.1
    batch = STEP_ROWS if tiny else 2
    trained = math.ceil(rows * 0.9) if "val_size" in values else rows
    batch = max(1, min(batch, trained))
    accumulation = max(1, min(STEP_ROWS, trained) // (batch * gpus))
    steps_an_epoch = math.ceil(max(1, trained) / (batch * accumulation * gpus))
    values |= {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    epochs = EPOCHS[goal][rows < ENOUGH_ROWS]
    steps = steps_an_epoch * epochs
    if goal == "quick":
        steps = QUICK_STEPS
        values["max_steps"] = steps
    else:
        values["num_train_epochs"] = float(epochs)
    # Small networks take larger steps; 1e-4 is usual for adapters on models of billions.
    values |= {"learning_rate": 2e-3 if tiny else 1e-4, "lr_scheduler_type": "cosine", "warmup_ratio": 0.05}
    if held_out:
        values |= {"eval_strategy": "steps", "eval_steps": max(5, steps // 5), "load_best_model_at_end": True}
        values["sample_answers"] = SAMPLES
    values |= {"logging_steps": max(1, steps // 150), "save_steps": max(10, steps // 5), "save_total_limit": 2}
    return values


def _fits_in_16_bits(goal: Goal, parameters: int, card_gib: float) -> bool:
    return goal == "best" and 0 < parameters * BITS_16 < card_gib * 2**30
