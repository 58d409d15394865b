"""Rows put together into the tensors of one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from finetune.encoding.encoded import Encoded
from finetune.model.attention import Packed


@dataclass
class Batch:
    """B rows padded to L tokens, or rows packed into one, of L tokens together.

    ids: [B, L]; positions: [4, B, L] (text order, then M-RoPE's three); attended: [B, L] bool or None if nothing is
    padded on the left; labelled: [B, L] bool, where the next token is a label; label_at: [N], the same as places in
    B x L; labels: [N], those tokens in order; images: bank indices in the order of the ids; rows: their sources;
    packed: where the rows are, if they are packed.
    """

    ids: Any
    positions: Any
    attended: Any | None
    images: list[int]
    labelled: Any = None
    label_at: Any = None
    labels: Any = None
    rows: tuple[str, ...] = ()
    packed: Packed | None = None


def collate_train(rows: Sequence[Encoded], device: torch.device, packing: bool = False) -> Batch:
    """Pads rows on the right to the longest, or packs them where that saves padding, and marks the labels.

    Nothing needs a mask: under causal attention no real token sees the padding after it. Each row ends before its last
    label: what is only predicted need not be read.
    """
    ends = [int(np.flatnonzero(row.labelled)[-1]) for row in rows]
    length = max(ends)
    ids = np.zeros((len(rows), length), dtype=np.int64)
    positions = np.zeros((4, len(rows), length), dtype=np.int64)
    labelled = np.zeros((len(rows), length), dtype=bool)
    positions[0] = np.arange(length)
    for n, (row, end) in enumerate(zip(rows, ends, strict=True)):
        ids[n, :end], labelled[n, :end] = row.ids[:end], row.labelled[1 : end + 1]
        positions[1:, n, :end] = row.positions[:, :end]
    labels = np.concatenate([row.ids[1:][row.labelled[1:]] for row in rows])
    packed = None
    if packing and sum(ends) < ids.size:
        places = np.concatenate([n * length + np.arange(end) for n, end in enumerate(ends)])
        ids, labelled = ids.reshape(1, -1)[:, places], labelled.reshape(1, -1)[:, places]
        positions = positions.reshape(4, 1, -1)[:, :, places]
        positions[0] = np.arange(len(places))  # in one sequence: from a new start transformers would make a mask
        packed = Packed(_tensor(places, device), len(rows), length)
    return Batch(
        ids=_tensor(ids, device),
        positions=_tensor(positions, device),
        attended=None,
        images=[image for row in rows for image in row.images],
        labelled=_tensor(labelled, device),
        label_at=_tensor(np.flatnonzero(labelled), device),
        labels=_tensor(labels, device),
        rows=tuple(row.source for row in rows),
        packed=packed,
    )


def collate_prompts(rows: Sequence[Encoded], device: torch.device) -> Batch:
    """Pads prompts on the right to the longest; nothing needs a mask, see `collate_train`."""
    length = max(len(row) for row in rows)
    ids = np.zeros((len(rows), length), dtype=np.int64)
    positions = np.zeros((4, len(rows), length), dtype=np.int64)
    positions[0] = np.arange(length)
    for n, row in enumerate(rows):
        ids[n, : len(row)], positions[1:, n, : len(row)] = row.ids, row.positions
    return Batch(
        ids=_tensor(ids, device),
        positions=_tensor(positions, device),
        attended=None,
        images=[image for row in rows for image in row.images],
    )


def _tensor(array: Any, device: torch.device) -> Any:
    return on_device(torch.from_numpy(array), device)


def on_device(tensor: Any, device: torch.device) -> Any:
    """A tensor of the CPU on the device, without a wait for it."""
    return ready(tensor, device).to(device, non_blocking=True)


def ready(tensor: Any, device: torch.device) -> Any:
    """The tensor in memory that a GPU can read by itself: a copy out of other memory waits for what the GPU does."""
    return tensor.pin_memory() if device.type == "cuda" else tensor
