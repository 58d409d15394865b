"""A chat as the model is trained on it, and a pair of them."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence
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

    ids: [T] int32, one for each image; runs: where runs of label tokens begin and end, in turn, int32 too; media:
    indices into the bank; more: what a family keeps besides. Numbers are in arrays, as a list takes nine times as much.
    """

    ids: array[int]
    runs: array[int]
    media: tuple[int, ...]
    more: tuple[str, ...] = ()

    @property
    def labels(self) -> int:
        """Label tokens."""
        return sum(self.runs[1::2]) - sum(self.runs[::2])

    @property
    def labelled(self) -> Any:
        """[T] bool, the label tokens."""
        labelled = np.zeros(len(self.ids), dtype=bool)
        for start, end in zip(self.runs[::2], self.runs[1::2], strict=True):
            labelled[start:end] = True
        return labelled


@dataclass(frozen=True)
class EncodedText:
    """A chat without its media: ids and runs as of Compact; images, videos: how many of their tokens it shows."""

    ids: array[int]
    runs: array[int]
    images: int
    videos: int


def label_runs(ids: list[int], encoding: Any, text: str, starts: Sequence[int], eos: Sequence[int]) -> list[int] | None:
    """Where runs of label tokens begin and end: from each answer's first token to its end and the newline after it.

    None if an answer has no end. ids: [T]; encoding: the tokenizer's, which knows where tokens are in the chat's text;
    starts: where answers begin in it; eos: the tokens that end one.

    A token that begins in the prompt and reaches into the answer is no label: the model never writes it.
    """
    runs: list[int] = []
    for start in starts:
        first = _first_token(encoding, start)
        ends = [end for token in eos if (end := _index(ids, token, first)) >= 0]
        if not ends:
            return None
        after = min(ends) + 1
        if after < len(ids) and text[slice(*encoding.token_to_chars(after))].isspace():
            after += 1
        if runs and first <= runs[-1]:  # the run goes on
            runs[-1] = max(after, runs[-1])
        else:
            runs += [first, after]
    return runs


def _first_token(encoding: Any, start: int) -> int:
    """The first token that begins at a character of the text or after it."""
    token = encoding.char_to_token(start)
    if token is not None and encoding.token_to_chars(token)[0] == start:
        return int(token)
    return bisect_left(encoding.offsets, (start,))


def _index(ids: list[int], token: int, start: int) -> int:
    """Where the token is first from `start` on; -1 if it is not."""
    try:
        return ids.index(token, start)
    except ValueError:
        return -1


def runs_of(labelled: Any) -> array[int]:
    """Where runs of True begin and end, in turn. labelled: [T] bool."""
    return array("i", np.flatnonzero(np.diff(labelled, prepend=False, append=False)).tolist())


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
