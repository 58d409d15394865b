"""The rows of several data files as one sequence, none of which is in memory until it is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, overload

import numpy as np

from finetune.data.formats import Row
from finetune.data.remote_images import downloaded
from finetune.data.tables.row_file import RowFile
from finetune.errors import FinetuneError

READ_ROWS = 512  # at once, where all are asked for


class Rows(Sequence[Any]):
    """Rows by their number in the `files` together, `at`: [R]. One that is broken is a FinetuneError.

    failed: what is wrong with rows whose images could not be downloaded, by their number in the files.
    """

    def __init__(self, files: Sequence[RowFile], at: Any = None, failed: dict[int, str] | None = None) -> None:
        self.files, self.failed = list(files), failed or {}
        self._ends = np.cumsum([len(file) for file in files])
        self.at = np.arange(self._ends[-1] if len(files) else 0) if at is None else np.asarray(at, np.int64)

    def __len__(self) -> int:
        return len(self.at)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Rows: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return self.take(index)
        number = int(self.at[index])
        return self._usable(number, self.as_written(number))

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self), READ_ROWS):
            yield from self._read(self.at[start : start + READ_ROWS])

    def _read(self, numbers: Any) -> Iterator[Any]:
        """The rows of these numbers in the files together. numbers: [N]."""
        which = np.searchsorted(self._ends, numbers, side="right")
        edges = [0, *(np.flatnonzero(np.diff(which)) + 1).tolist(), len(which)]
        for start, end in pairwise(edges):
            file = self.files[which[start]]
            within = numbers[start:end] - (int(self._ends[which[start]]) - len(file))
            yield from map(self._usable, numbers[start:end].tolist(), file.read(within))

    def _usable(self, number: int, row: Row | FinetuneError) -> Row | FinetuneError:
        """A row as it was written, with the files of its images in place of their URLs."""
        if number in self.failed:
            return FinetuneError(self.failed[number])
        return downloaded(row) if isinstance(row, Row) else row

    def as_written(self, number: int) -> Any:
        """The row of this number in the files together, with the URLs of its images."""
        which = int(np.searchsorted(self._ends, number, side="right"))
        return self.files[which][number - int(self._ends[which]) + len(self.files[which])]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return False
        return all(ours == theirs for ours, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def source(self, index: int) -> str:
        """ "file, row 3", for messages."""
        number = int(self.at[index])
        which = int(np.searchsorted(self._ends, number, side="right"))
        file = self.files[which]
        return f"{file.name}, row {number - int(self._ends[which]) + len(file) + 1}"

    def take(self, at: Any) -> Rows:
        """The rows of these places in this sequence."""
        return Rows(self.files, self.at[at], self.failed)

    def remote(self) -> Any:
        """The numbers, in the files together, of rows with an image by URL."""
        starts = self._ends - [len(file) for file in self.files]
        found = [start + file.remote for start, file in zip(starts, self.files, strict=True)]
        return np.concatenate(found) if found else np.zeros(0, np.int64)

    def sources(self) -> Iterable[tuple[str, int]]:
        """Each data file's name, and how many of the rows are from it."""
        which = np.searchsorted(self._ends, self.at, side="right")
        counts = np.bincount(which, minlength=len(self.files))
        return [(file.name, int(count)) for file, count in zip(self.files, counts, strict=True) if count]


def joined(parts: Sequence[Rows]) -> Rows:
    """The rows of the parts one after another."""
    files = [file for part in parts for file in part.files]
    at, start = [], 0
    failed: dict[int, str] = {}
    for part in parts:
        at.append(part.at + start)
        failed |= {number + start: message for number, message in part.failed.items()}
        start += sum(map(len, part.files))
    return Rows(files, np.concatenate(at) if at else [], failed)
