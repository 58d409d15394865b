"""A micro-batch in tensors of fixed shape and place, as a CUDA graph reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from finetune.errors import FinetuneError

IGNORED = -100  # a label that is none
FEWEST_LABELS = 64


@dataclass
class FixedInputs:
    """B rows of L tokens with N labels, padded, and room for image tokens' features; all are parts of buffers.

    ids: [B, L]; positions: [3, B, L]; features: [1 + D, n, hidden]; label_at: [N] places in B x L; labels: [N] the
    tokens after them, or IGNORED.
    """

    ids: Any
    positions: Any
    features: Any
    label_at: Any
    labels: Any

    @property
    def shape(self) -> tuple[int, int, int]:
        """(rows, tokens a row, labels)."""
        return (*self.ids.shape, len(self.labels))


class Buffers:
    """Where micro-batches of up to `rows` rows, `length` tokens a row and `labels` label tokens are put.

    levels: 1 + D; hidden, dtype: of the features. coarse: whether there are half as many lengths to pad rows to, which
    is to be set before the first batch comes.
    """

    coarse = False

    def __init__(
        self, rows: int, length: int, labels: int, levels: int, hidden: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.longest = length
        tokens = rows * rounded(length, length)
        self.numbers = torch.zeros(4 * tokens, dtype=torch.long, device=device)
        self.features = torch.zeros(levels, tokens, hidden, dtype=dtype, device=device)
        self.places = torch.zeros(2, max(FEWEST_LABELS, rounded(labels, labels)), dtype=torch.long, device=device)

    def padded(self, rows: int, length: int, labels: int) -> tuple[int, int, int]:
        """The shape of so many rows, tokens a row and labels in all when they are put here.

        There are few, as each is captured: labels are padded to 64 times a power of 4, never beyond the most.
        """
        bits = (max(FEWEST_LABELS, labels) - 1).bit_length()
        places = min(self.places.shape[1], 1 << (bits + bits % 2))
        return rows, rounded(length, self.longest, 8 if self.coarse else 16), places

    def fits(self, batch: Any) -> bool:
        """Whether a batch can be put here: not larger than was foreseen, and its rows not packed."""
        rows, length = batch.ids.shape
        if length > self.longest or len(batch.labels) > self.places.shape[1] or batch.packed is not None:
            return False
        _, length, _ = self.padded(rows, length, len(batch.labels))
        return bool(4 * rows * length <= len(self.numbers))

    def blank(self) -> FixedInputs:
        """A few tokens without labels, whose loss and gradients are 0."""
        numbers, places = self.numbers[:64].view(4, 1, 16), self.places[:, :FEWEST_LABELS]
        places[1] = IGNORED
        return FixedInputs(numbers[0], numbers[1:], self.features, places[0], places[1])

    def put(self, batch: Any, features: Any) -> FixedInputs:
        """The batch in the buffers, padded on the right.

        features: [1 + D, image tokens, hidden], if not in the buffers already; or None.
        """
        rows, own = batch.ids.shape
        rows, length, labels = self.padded(rows, own, len(batch.labels))
        numbers = self.numbers[: 4 * rows * length].view(4, rows, length).zero_()
        numbers[0, :, :own] = batch.ids
        numbers[1:, :, :own] = batch.positions[1:]
        places = self.places[:, :labels]
        places[0] = 0
        places[1] = IGNORED
        count = len(batch.labels)
        places[0, :count] = batch.label_at // own * length + batch.label_at % own
        places[1, :count] = batch.labels
        if features is not None:
            if features.shape[1] > self.features.shape[1]:
                raise FinetuneError(f"{'; '.join(batch.rows)}: more image tokens than tokens.")
            if features.data_ptr() != self.features.data_ptr():
                self.features[:, : features.shape[1]] = features
        return FixedInputs(numbers[0], numbers[1:], self.features, places[0], places[1])


def rounded(length: int, longest: int, parts: int = 16) -> int:
    """The length that rows of `length` tokens are padded to: at most 1/parts more, never beyond what the longest needs.

    parts: lengths between a power of 2 and the next one, a power of 2 itself.
    """
    step = max(8, (1 << length.bit_length() - 1) // parts)
    return min(-(-length // step) * step, -(-longest // 8) * 8)
