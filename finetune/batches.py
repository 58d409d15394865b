"""The order of the rows, and rows put together into tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from finetune.template import Encoded

MEGABATCH = 50  # batches' worth of rows that are sorted by length together, as in transformers' LengthGroupedSampler


@dataclass
class Batch:
    """B rows padded to L tokens.

    ids: [B, L]; positions: [4, B, L] (text order, then M-RoPE's three); learnt: [B, L] bool; attended: [B, L] bool or
    None if nothing is padded on the left; images: bank indices in the order of the ids; rows: their sources.
    """

    ids: Any
    positions: Any
    learnt: Any
    attended: Any | None
    images: list[int]
    rows: list[str]

    @property
    def label_tokens(self) -> int:
        return int(self.learnt.sum())


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


def collate(rows: Sequence[Encoded], device: torch.device, left: bool = False) -> Batch:
    """Pads rows to the longest.

    On the right nothing needs a mask: under causal attention no real token sees the padding after it. On the left (to
    generate) `attended` marks the real tokens.
    """
    length = max(len(row) for row in rows)
    ids = np.zeros((len(rows), length), dtype=np.int64)
    positions = np.zeros((4, len(rows), length), dtype=np.int64)
    learnt = np.zeros((len(rows), length), dtype=bool)
    attended = np.zeros((len(rows), length), dtype=bool)
    positions[0] = np.arange(length)
    for n, row in enumerate(rows):
        at = slice(length - len(row), length) if left else slice(0, len(row))
        ids[n, at], learnt[n, at], attended[n, at] = row.ids, row.learnt, True
        positions[1:, n, at] = row.positions
    padded = left and not attended.all()

    def tensor(array: Any) -> Any:
        return torch.from_numpy(array).to(device, non_blocking=True)

    return Batch(
        tensor(ids),
        tensor(positions),
        tensor(learnt),
        tensor(attended) if padded else None,
        [image for row in rows for image in row.images],
        [row.source for row in rows],
    )
