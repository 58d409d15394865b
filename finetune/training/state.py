"""What a training run is at a step, which a checkpoint must hold to go on bit for bit, and what it was at its end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from finetune.families.preference import MEASURED


@dataclass
class State:
    """What changes from step to step besides the weights; saved in every checkpoint.

    step: optimiser steps done; skipped: those without a finite gradient; recent: losses since the last log line; loss:
    their mean at the last log line; eval_loss, best_loss, best_step: of validations; stale: validations since the best
    one; validated_step: the step of the last validation; recent_rewards, rewards, eval_rewards: with stage
    dpo, what preference.MEASURED names: since the last log line, at it, and of the last validation.
    """

    step: int = 0
    skipped: int = 0
    recent: list[float] = field(default_factory=list)
    loss: float = math.nan
    eval_loss: float = math.nan
    best_loss: float = math.inf
    best_step: int = 0
    stale: int = 0
    validated_step: int = -1
    recent_rewards: list[list[float]] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    eval_rewards: list[float] = field(default_factory=list)

    def stops_early(self, patience: int | None) -> bool:
        """Whether so many validations in a row were no better; never without a number."""
        return patience is not None and self.stale >= patience


@dataclass(frozen=True)
class TrainResult:
    """What a run did.

    output_dir: the folder of the trained weights; steps: optimiser steps done in all; seconds: of this call, loading
    included; first_step_seconds: from the call to the end of its first step; processes: how many trained; samples:
    rows trained on in this call; samples_per_second: over the steps after the first; loss: mean of the last logged
    steps; eval_loss: of the weights that were kept, or None without validation rows; best_step: the step it is from;
    broken_rows: left out by bad_rows: skip; broken: the first of them and what is wrong;
    skipped_steps: steps without a finite gradient; peak_memory_gib: reserved on the fullest GPU, or None; interrupted:
    the signal that ended the run early; preference_accuracy, reward_margin: with stage dpo, of the last validation, or
    without one of the last logged steps: the share of pairs whose chosen answer has the higher reward, and the mean
    difference of their rewards.
    """

    output_dir: str
    steps: int
    total_steps: int
    seconds: float
    first_step_seconds: float
    samples: int
    samples_per_second: float
    loss: float
    eval_loss: float | None
    best_step: int | None
    processes: int
    trainable_parameters: int
    four_bit_layers: int
    dropped_rows: int
    broken_rows: int
    broken: str
    skipped_steps: int
    peak_memory_gib: float | None
    interrupted: int | None
    preference_accuracy: float | None = None
    reward_margin: float | None = None


def reward_figures(measured: Sequence[float], prefix: str = "") -> dict[str, float]:
    """The means of preference.MEASURED and their margin, by the names that TRL logs; {} without any."""
    if not measured:
        return {}
    figures = dict(zip(MEASURED, measured, strict=True))
    figures["rewards/margins"] = figures["rewards/chosen"] - figures["rewards/rejected"]
    return {prefix + name: round(value, 6) for name, value in figures.items()}
