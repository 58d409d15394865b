"""A chat as the model is trained on it."""

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
