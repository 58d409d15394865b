"""The loss on rows that are not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from finetune.encoding.encoded import Encoded
from finetune.families.base import Feed
from finetune.training.parallel import World


def validate(
    parallel: Any, loss: Any, rows: Sequence[Encoded], feed: Feed, size: int, world: World
) -> tuple[float, list[float]]:
    """The loss a label token, or a pair, over `rows`, and the means of what else is measured.

    The rows go `size` at a time, each process taking its share. loss: the module that computes a batch's summed loss;
    parallel: the same as DDP or FSDP have wrapped it. To be called under autocast, with dropout off.
    """
    starts = range(0, len(rows), size)
    summed, parts, measured = 0.0, 0, [0.0] * len(loss.measured)
    with torch.no_grad():
        for first in range(0, len(starts), world.size):
            mine = first + world.rank
            # FSDP needs every process in every forward pass, so one without a batch repeats the first.
            start = starts[mine if mine < len(starts) else 0]
            batch, images = feed.batch(rows[start : start + size])
            value = parallel(batch, images).item()
            if mine < len(starts):
                summed, parts = summed + value, parts + loss.parts(batch)
                measured = [total + one for total, one in zip(measured, loss.measured, strict=True)]
    summed, counted, *measured = world.sum(summed, parts, *measured)
    return summed / counted, [total / counted for total in measured]
