"""A chat as the model is trained on it, and a pair of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Encoded:
    """A chat as the model sees it. L tokens.

    ids: [L] int64; labelled: [L] bool, the label tokens; positions: [3, L] int64, M-RoPE's temporal, height and width;
    images: indices into the ImageBank, of images and videos in order; source: where the row is from.
    """

    ids: np.ndarray[Any, Any]
    labelled: np.ndarray[Any, Any]
    positions: np.ndarray[Any, Any]
    images: tuple[int, ...]
    source: str

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def last_answer(self) -> int:
        """Where the last answer begins."""
        labelled = np.flatnonzero(self.labelled)
        return int(labelled[-1]) - int(np.argmax(np.append(np.diff(labelled[::-1]) != -1, True)))

    def until(self, start: int) -> Encoded:
        """The chat up to its last answer, which begins at `start`."""
        return Encoded(self.ids[:start], self.labelled[:start], self.positions[:, :start], self.images, self.source)


@dataclass(frozen=True)
class Compact:
    """A chat before its images get their tokens and its tokens their positions: what is kept of every row.

    ids: [T], one for each image; labelled: [T] bool; media: indices into the bank; more: what a family keeps besides.
    """

    ids: Any
    labelled: Any
    media: tuple[int, ...]
    more: tuple[str, ...] = ()


def split_pair(row: Encoded) -> tuple[Encoded, Encoded]:
    """The chats with the chosen and with the rejected answer, of a chat with both in succession."""
    labelled = np.flatnonzero(row.labelled)
    end = int(labelled[np.flatnonzero(np.diff(labelled) != 1)[0]]) + 1  # of the chosen answer
    start = int(labelled[0])
    # Both answers' turns begin with the same token, which no text may hold.
    turn = start - 1 - int(np.argmax(row.ids[:start][::-1] == row.ids[end]))
    chosen = Encoded(row.ids[:end], row.labelled[:end], row.positions[:, :end], row.images, row.source)
    kept = np.r_[0:turn, end : len(row)]
    positions = row.positions[:, kept]
    positions[:, turn:] -= positions[:, turn : turn + 1] - row.positions[:, turn : turn + 1]
    return chosen, Encoded(row.ids[kept], row.labelled[kept], positions, row.images, row.source)
