"""The order of rows in training and their grouping into micro-batches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch

from finetune.encoding.encoded import Encoded
from finetune.encoding.encoded_rows import lengths_of
from finetune.recipe.schema import Recipe
from finetune.training.optim import steps_per_epoch

MEGABATCH = 50  # batches' worth of rows that are sorted by length together, as in transformers' LengthGroupedSampler
DECODED_AHEAD = 2  # micro-batches whose images are decoded while one is computed


class Batches(Sequence[list[int]]):
    """Batches of `size` row indices, the last of which may be smaller.

    order: [R] row indices; turns: [batches] the batches in the order of their use. Numbers are in arrays: lists of a
    million rows' would take a tenth of a gigabyte.
    """

    def __init__(self, order: Any, size: int, turns: Any) -> None:
        self.order, self.size, self.turns = order, size, turns

    def __len__(self) -> int:
        return len(self.turns)

    @overload
    def __getitem__(self, index: int) -> list[int]: ...
    @overload
    def __getitem__(self, index: slice) -> list[list[int]]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        start = int(self.turns[index]) * self.size
        return self.order[start : start + self.size].tolist()


def epoch_batches(lengths: Any, size: int, seed: int, epoch: int, grouped: bool) -> Batches:
    """The batches of row indices of one epoch; the same for the same arguments, so a run can resume anywhere.

    lengths: [R] tokens of the rows. Without grouping the order is that of torch's RandomSampler under transformers'
    Trainer (seed + epoch).
    """
    order, turns = _permutation(len(lengths), seed + epoch), np.arange(-(-len(lengths) // size))
    if grouped:
        for start in range(0, len(order), size * MEGABATCH):
            chunk = order[start : start + size * MEGABATCH]
            chunk[:] = chunk[np.argsort(-lengths[chunk].astype(np.int64), kind="stable")]
        turns = _permutation(len(turns), seed + epoch + 1)
    return Batches(order, size, turns)


def _permutation(count: int, seed: int) -> Any:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).numpy()


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
    lengths = lengths_of(rows)
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
