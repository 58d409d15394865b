"""The order of the rows, and rows put together into tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from finetune.recipe import Recipe
from finetune.schedule import steps_per_epoch
from finetune.template import Encoded

MEGABATCH = 50  # batches' worth of rows that are sorted by length together, as in transformers' LengthGroupedSampler


@dataclass
class Batch:
    """B rows padded to L tokens.

    ids: [B, L]; positions: [4, B, L] (text order, then M-RoPE's three); attended: [B, L] bool or None if nothing is
    padded on the left; labelled: [B, L] bool, where the next token is learnt; labels: those next tokens in order;
    images: bank indices in the order of the ids; rows: their sources.
    """

    ids: Any
    positions: Any
    attended: Any | None
    images: list[int]
    labelled: Any = None
    labels: Any = None
    rows: tuple[str, ...] = ()


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
    lengths = [len(row) for row in rows]
    epoch, at = divmod(step, steps_per_epoch(recipe, len(rows), processes))
    while True:
        order = epoch_batches(lengths, recipe.per_device_train_batch_size, recipe.seed, epoch, recipe.group_by_length)
        for first in range(at * size, len(order), size):
            window = [[rows[index] for index in batch] for batch in order[first : first + size]]
            mine = window[rank::processes]
            idle = len(mine) < math.ceil(len(window) / processes)
            everything = [row for batch in window for row in batch]
            yield Window(
                mine=[*mine, window[0]] if idle else mine,
                idle=idle,
                labels=sum(int(row.learnt[1:].sum()) for row in everything),
                samples=len(everything),
                tokens=sum(map(len, everything)),
                sources=tuple(row.source for row in everything),
            )
        epoch, at = epoch + 1, 0


def collate_train(rows: Sequence[Encoded], device: torch.device) -> Batch:
    """Pads rows on the right to the longest and marks the labels.

    Nothing needs a mask: under causal attention no real token sees the padding after it. Each row ends before its last
    label: what is only predicted need not be read.
    """
    ends = [int(np.flatnonzero(row.learnt)[-1]) for row in rows]
    length = max(ends)
    ids = np.zeros((len(rows), length), dtype=np.int64)
    positions = np.zeros((4, len(rows), length), dtype=np.int64)
    labelled = np.zeros((len(rows), length), dtype=bool)
    positions[0] = np.arange(length)
    for n, (row, end) in enumerate(zip(rows, ends, strict=True)):
        ids[n, :end], labelled[n, :end] = row.ids[:end], row.learnt[1 : end + 1]
        positions[1:, n, :end] = row.positions[:, :end]
    labels = np.concatenate([row.ids[1:][row.learnt[1:]] for row in rows])
    return Batch(
        ids=_tensor(ids, device),
        positions=_tensor(positions, device),
        attended=None,
        images=[image for row in rows for image in row.images],
        labelled=_tensor(labelled, device),
        labels=_tensor(labels, device),
        rows=tuple(row.source for row in rows),
    )


def collate_prompts(rows: Sequence[Encoded], device: torch.device) -> Batch:
    """Pads prompts on the left, so that all answers begin at the same place."""
    length = max(len(row) for row in rows)
    ids = np.zeros((len(rows), length), dtype=np.int64)
    positions = np.zeros((4, len(rows), length), dtype=np.int64)
    attended = np.zeros((len(rows), length), dtype=bool)
    positions[0] = np.arange(length)
    for n, row in enumerate(rows):
        at = slice(length - len(row), length)
        ids[n, at], positions[1:, n, at], attended[n, at] = row.ids, row.positions, True
    return Batch(
        ids=_tensor(ids, device),
        positions=_tensor(positions, device),
        attended=None if attended.all() else _tensor(attended, device),
        images=[image for row in rows for image in row.images],
    )


def _tensor(array: Any, device: torch.device) -> Any:
    return torch.from_numpy(array).to(device, non_blocking=True)
