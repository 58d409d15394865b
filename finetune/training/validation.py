"""The loss on rows that are not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from finetune.encoding.encoded import Encoded
from finetune.families.base import Feed
from finetune.training.parallel import World


def validation_loss(loss: Any, rows: Sequence[Encoded], feed: Feed, size: int, world: World) -> float:
    """The loss a label token over `rows`, `size` at a time, each process taking its share.

    loss: the module that computes a batch's summed loss. To be called under autocast, with dropout off.
    """
    batches = [rows[start : start + size] for start in range(0, len(rows), size)]
    summed, labels = 0.0, 0
    with torch.no_grad():
        for first in range(0, len(batches), world.size):
            mine = first + world.rank
            # FSDP needs every process in every forward pass, so one without a batch repeats the first.
            batch, images = feed.batch(batches[mine if mine < len(batches) else 0])
            value = loss(batch, images).item()
            if mine < len(batches):
                summed, labels = summed + value, labels + len(batch.labels)
    summed, counted = world.sum(summed, labels)
    return summed / counted
