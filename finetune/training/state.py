"""What a training run is at a step: all that a checkpoint must hold to go on bit for bit."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass
class State:
    """What changes from step to step besides the weights; saved in every checkpoint."""

    step: int = 0
    skipped: int = 0
    recent: list[float] = field(default_factory=list)  # losses since the last log line
    loss: float = math.nan
    eval_loss: float = math.nan
    best_loss: float = math.inf
    best_step: int = 0
    stale: int = 0  # evaluations since the best one
