"""The order of rows in training and their grouping into micro-batches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from finetune.encoding.encoded import Encoded
from finetune.encoding.encoded_rows import lengths_of
from finetune.recipe.schema import Recipe
from finetune.training.optim import steps_per_epoch

MEGABATCH = 50  # batches' worth of rows that are sorted by length together, as in transformers' LengthGroupedSampler
DECODED_AHEAD = 2  # micro-batches whose images are decoded while one is computed


def epoch_batches(lengths: Sequence[int], size: int, seed: int, epoch: int, grouped: bool) -> list[list[int]]:
    """The batches of row indices of one epoch; the same for the same arguments, so a run can resume anywhere.

    Without grouping the order is that of torch's RandomSampler under transformers' Trainer (seed + epoch).
    """
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(seed + epoch)).tolist()
    if not grouped:
        return [order[start : start + size] for start in range(0, len(order), size)]
    batches: list[list[int]] = []
    for start in range(0, len(order), size * MEGABATCH):
        chunk = sorted(order[start : start + size * MEGABATCH], key=lambda index: -lengths[index])
        batches += [chunk[at : at + size] for at in range(0, len(chunk), size)]
    shuffle = torch.randperm(len(batches), generator=torch.Generator().manual_seed(seed + epoch + 1)).tolist()
    return [batches[index] for index in shuffle]


@dataclass(frozen=True)
class Window:
    """What one optimiser step learns from.

    mine: this process's micro-batches; idle: whether the last of them only keeps this process in step with the others,
    for a window that does not divide evenly, and must not count; labels, samples, tokens: of all processes together.
    """

    mine: list[list[Encoded]]
    idle: bool
    labels: int
    samples: int
    tokens: int
    sources: tuple[str, ...]


def step_windows(
    rows: Sequence[Encoded], recipe: Recipe, step: int, rank: int = 0, processes: int = 1
) -> Iterator[Window]:
    """The window of each optimiser step from `step` on, without end.

    The order is that of one process with `processes` times the accumulation.
    """
    size = recipe.gradient_accumulation_steps * processes
    lengths = lengths_of(rows).tolist()
    epoch, at = divmod(step, steps_per_epoch(recipe, len(rows), processes))
    while True:
        order = epoch_batches(lengths, recipe.batch_size, recipe.seed, epoch, recipe.group_by_length)
        for first in range(at * size, len(order), size):
            window = [[rows[index] for index in batch] for batch in order[first : first + size]]
            mine = window[rank::processes]
            idle = len(mine) < math.ceil(len(window) / processes)
            everything = [row for batch in window for row in batch]
            yield Window(
                mine=[*mine, window[0]] if idle else mine,
                idle=idle,
                labels=sum(int(row.labelled[1:].sum()) for row in everything),
                samples=len(everything),
                tokens=sum(map(len, everything)),
                sources=tuple(row.source for row in everything),
            )
        epoch, at = epoch + 1, 0
