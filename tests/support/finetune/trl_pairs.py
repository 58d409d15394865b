"""What both TRL and Lensmith compute the loss of, see goldens/make_trl_preferences.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

BETA, GAMMA = 0.3, 0.7
PAIRS = [
    (f"what is number {n}?", "a red rectangle" + " or so" * (n % 3), "a blue circle" + ", yes" * (n % 4))
    for n in range(8)
]

# Mean log-probabilities of the chosen and rejected answers of four pairs, for losses that need no more.
MEANS = ((-0.2, -1.5, -3.0, -0.01), (-0.9, -1.4, -0.3, -6.0))


def write_pairs(path: Path) -> None:
    """PAIRS as a dataset's file."""
    records = [{"prompt": asked, "chosen": chosen, "rejected": rejected} for asked, chosen, rejected in PAIRS]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def move(model: Any) -> None:
    """Gives fresh adapters weights that change the model's answers."""
    numbers = torch.Generator().manual_seed(11)
    for _, p in sorted(model.named_parameters()):
        if p.requires_grad:
            p.data = 0.1 * torch.randn(p.shape, generator=numbers)
