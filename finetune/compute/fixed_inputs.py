"""A micro-batch in tensors of fixed shape and place, as a CUDA graph reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

IGNORED = -100  # a label that is none


@dataclass
class FixedInputs:
    """B rows of L tokens with N labels, padded; every tensor a view of a buffer that stays.

    ids: [B, L]; positions: [3, B, L]; is_image: [B, L] bool; features: [1 + D, B, L, hidden], of the image tokens, or
    None; label_at: [N] places in B * L; labels: [N] the tokens after them, or -100.
    """

    ids: Any
    positions: Any
    is_image: Any
    features: Any
    label_at: Any
    labels: Any


class Buffers:
    """The buffers of the largest micro-batch."""

    def __init__(self, tokens: int, labels: int, levels: int, hidden: int, dtype: torch.dtype, device: Any) -> None:
        self.numbers = torch.zeros(4 * tokens, dtype=torch.long, device=device)
        self.marks = torch.zeros(tokens, dtype=torch.bool, device=device)
        self.features = torch.zeros(levels * tokens * hidden, dtype=dtype, device=device)
        self.places = torch.zeros(2 * labels, dtype=torch.long, device=device)
        self.levels, self.hidden = levels, hidden

    def view(self, rows: int, length: int, labels: int) -> FixedInputs:
        size = rows * length
        numbers = self.numbers[: 4 * size].view(4, rows, length)
        features = self.features[: self.levels * size * self.hidden]
        places = self.places[: 2 * labels].view(2, labels)
        return FixedInputs(
            numbers[0],
            numbers[1:],
            self.marks[:size].view(rows, length),
            features.view(self.levels, rows, length, self.hidden),
            places[0],
            places[1],
        )

    def fill(self, batch: Any, features: Any, image_ids: Any, length: int, labels: int) -> FixedInputs:
        """batch: on the CPU; features: [1 + D, n, hidden] on the device, or None."""
        rows, own = batch.ids.shape
        fixed = self.view(rows, length, labels)
        numbers = torch.zeros(4, rows, length, dtype=torch.long)
        numbers[0, :, :own] = batch.ids
        numbers[1:, :, :own] = batch.positions[1:]
        marks = torch.isin(numbers[0], image_ids)
        places = torch.zeros(2, labels, dtype=torch.long)
        places[1] = IGNORED
        found = batch.labelled.nonzero()
        places[0, : len(found)] = found[:, 0] * length + found[:, 1]
        places[1, : len(found)] = batch.labels
        self._copy(self.numbers[: numbers.numel()], numbers.view(-1))
        self._copy(self.marks[: marks.numel()], marks.view(-1))
        self._copy(self.places[: places.numel()], places.view(-1))
        fixed.features.zero_()
        if features is not None:
            at = self._on_device(marks.view(-1).nonzero()[:, 0])
            fixed.features.view(self.levels, -1, self.hidden).index_copy_(1, at, features.to(fixed.features.dtype))
        return fixed

    def _copy(self, into: Any, values: Any) -> None:
        into.copy_(values.pin_memory() if into.is_cuda else values, non_blocking=True)

    def _on_device(self, values: Any) -> Any:
        if not self.numbers.is_cuda:
            return values
        return values.pin_memory().to(self.numbers.device, non_blocking=True)
