"""Encoded chats in a memory-mapped Arrow file: ids are read when a row is asked for, and its positions computed then.

What decides about a run (lengths, numbers of labels, images) is in memory, as numbers.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, BinaryIO, overload

import numpy as np

from finetune.data.tables.cache import scratch_file
from finetune.encoding.encoded import Compact, Encoded
from finetune.encoding.encoder import Encoder
from finetune.errors import FinetuneError

if TYPE_CHECKING:  # the studio reads rows without loading Arrow before it has to
    import pyarrow as pa


@dataclass(frozen=True)
class EncodedBatch:
    """R rows on their way to the table.

    labels: [R] label tokens; counts: [R] images and videos; media: those of all rows, indices into `found`, which has
    each medium and what the bank knows of it; empty, boxed: [R] bool, whether an answer is empty, a text has boxes;
    wrong: what is wrong with rows, by their place in the batch.
    """

    table: pa.RecordBatch
    labels: Any
    counts: Any
    media: Any
    found: list[tuple[Any, Any]]
    empty: Any
    boxed: Any
    wrong: dict[int, str]


@cache
def _schema() -> pa.Schema:
    """ids; where runs of label tokens begin and end, in turn; what a family keeps besides."""
    import pyarrow as pa

    return pa.schema([("ids", pa.list_(pa.int32())), ("runs", pa.list_(pa.int32())), ("more", pa.large_binary())])


def pack(chats: Sequence[Compact | FinetuneError]) -> pa.RecordBatch:
    """Compact chats as a batch of the table's file."""
    import pyarrow as pa

    ids: list[array[int]] = []
    runs: list[array[int]] = []
    nothing = array("i")
    more: list[bytes | None] = []
    for chat in chats:
        if isinstance(chat, Compact):
            ids.append(chat.ids)
            runs.append(chat.runs)
            more.append(json.dumps(chat.more).encode() if chat.more else None)
        else:
            ids.append(nothing)
            runs.append(nothing)
            more.append(None)
    return pa.RecordBatch.from_arrays([_lists(ids), _lists(runs), pa.array(more, pa.large_binary())], schema=_schema())


def _lists(values: Sequence[array[int]]) -> pa.Array:
    import pyarrow as pa

    ends = np.cumsum([0, *map(len, values)], dtype=np.int32)
    flat = np.frombuffer(b"".join(values), np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(flat))


def _array(numbers: pa.ListScalar) -> array[int]:
    return array("i", numbers.values.to_numpy().tobytes())


class EncodedTable:
    """All rows of some datasets, encoded, by their number.

    lengths, labels: [R] tokens; wrong: what is wrong with a row; empty, boxed: [R] bool; source: a row's, for messages.
    """

    def __init__(self, batches: Iterable[EncodedBatch], encoder: Encoder, source: Callable[[int], str]) -> None:
        import pyarrow as pa

        self.encoder, self.source = encoder, source
        self.wrong: dict[int, str] = {}
        self._columns: dict[str, list[Any]] = {
            name: [] for name in ("lengths", "labels", "media", "counts", "empty", "boxed", "starts")
        }
        path = scratch_file(lambda file: self._write(file, batches), self)
        joined = {name: np.concatenate(parts) if parts else np.zeros(0, int) for name, parts in self._columns.items()}
        del self._columns
        self.lengths, self.labels, self._media = joined["lengths"], joined["labels"], joined["media"]
        self.empty, self.boxed, self._starts = joined["empty"], joined["boxed"], joined["starts"]
        self.counts = joined["counts"]
        self._media_ends = np.cumsum(joined["counts"], dtype=np.int64)
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        self._batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]

    def _write(self, file: BinaryIO, batches: Iterable[EncodedBatch]) -> None:
        import pyarrow as pa

        start, columns, bank = 0, self._columns, self.encoder.bank
        with pa.ipc.new_file(pa.PythonFile(file, mode="w"), _schema()) as writer:
            for batch in batches:
                writer.write_batch(batch.table)
                known = np.array([bank.put(*found) for found in batch.found], dtype=np.int32)
                added = np.array([self.encoder.added_tokens(index) for index in known.tolist()], dtype=np.int64)
                rows = np.repeat(np.arange(len(batch.counts)), batch.counts)
                text = np.diff(batch.table.column(0).offsets.to_numpy())
                shown = np.bincount(rows, added[batch.media] if len(added) else None, minlength=len(batch.counts))
                columns["lengths"].append((text + shown).astype(np.int32))
                columns["media"].append(known[batch.media])
                for name in ("labels", "counts", "empty", "boxed"):
                    columns[name].append(getattr(batch, name))
                self.wrong |= {start + number: message for number, message in batch.wrong.items()}
                columns["starts"].append(np.array([start]))
                start += len(batch.counts)

    def __len__(self) -> int:
        return len(self.lengths)

    def media(self, number: int) -> tuple[int, ...]:
        """The bank's indices of a row's images and videos."""
        return tuple(self._media[self._media_of(number)].tolist())

    def media_of(self, numbers: Any) -> Media:
        """The same of several rows. numbers: [N]."""
        counts = self.counts[numbers]
        starts = np.repeat(self._media_ends[numbers] - np.cumsum(counts, dtype=np.int64), counts)
        return Media(self._media[starts + np.arange(len(starts))], counts)

    def shrink(self, number: int, row: Encoded) -> None:
        """From now on the row has these, smaller, images."""
        self._media[self._media_of(number)] = row.images
        self.lengths[number] = len(row)

    def _media_of(self, number: int) -> slice:
        end = int(self._media_ends[number])
        return slice(end - int(self.counts[number]), end)

    def row(self, number: int) -> Encoded:
        """The chat as the model sees it."""
        batch = int(np.searchsorted(self._starts, number, side="right")) - 1
        ids, runs, more = (column[number - int(self._starts[batch])] for column in self._batches[batch].columns)
        kept = tuple(json.loads(more.as_py())) if more.is_valid else ()
        chat = Compact(_array(ids), _array(runs), self.media(number), kept)
        return self.encoder.place(chat, self.source(number))


class Media(Sequence[tuple[int, ...]]):
    """The bank's indices of R rows' images and videos.

    flat: [M], those of all rows in order; counts: [R], how many each row has.
    """

    def __init__(self, flat: Any, counts: Any) -> None:
        self.flat, self.counts = flat, counts
        self._ends = np.cumsum(counts, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.counts)

    @overload
    def __getitem__(self, index: int) -> tuple[int, ...]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[int, ...]]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        end = int(self._ends[index])
        return tuple(self.flat[end - int(self.counts[index]) : end].tolist())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    @property
    def rows(self) -> Any:
        """[M], the row of each medium."""
        return np.repeat(np.arange(len(self)), self.counts)


class EncodedRows(Sequence[Encoded]):
    """Some rows of a table, in an order. at: [R] their numbers in it."""

    def __init__(self, table: EncodedTable, at: Any) -> None:
        self.table, self.at = table, np.asarray(at, np.int64)

    def __len__(self) -> int:
        return len(self.at)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> list[Encoded]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self.table.row(number) for number in self.at[index].tolist()]
        return self.table.row(int(self.at[index]))

    @property
    def lengths(self) -> Any:
        """[R] tokens."""
        return self.table.lengths[self.at]

    @property
    def labels(self) -> Any:
        """[R] label tokens."""
        return self.table.labels[self.at]

    @property
    def media(self) -> Media:
        """The bank's indices of each row's images and videos."""
        return self.table.media_of(self.at)

    def take(self, rows: Any) -> EncodedRows:
        """The rows of these places in this sequence."""
        return EncodedRows(self.table, self.at[rows])


# The same of a few rows in a list, which a model's answers and the tests are made of.


def lengths_of(rows: Sequence[Encoded]) -> Any:
    """[R] tokens."""
    return rows.lengths if isinstance(rows, EncodedRows) else np.array([len(row) for row in rows])


def labels_of(rows: Sequence[Encoded]) -> Any:
    """[R] label tokens."""
    return rows.labels if isinstance(rows, EncodedRows) else np.array([int(row.labelled.sum()) for row in rows])


def media_of(rows: Sequence[Encoded]) -> Media:
    """The bank's indices of each row's images and videos."""
    if isinstance(rows, EncodedRows):
        return rows.media
    flat = [index for row in rows for index in row.images]
    return Media(np.array(flat, np.int32), np.array([len(row.images) for row in rows], np.int32))


def taken(rows: Sequence[Encoded], at: Any) -> Sequence[Encoded]:
    """The rows of these places."""
    return rows.take(at) if isinstance(rows, EncodedRows) else [rows[index] for index in at]


def replaced(rows: Sequence[Encoded], smaller: dict[int, Encoded]) -> Sequence[Encoded]:
    """The rows with those of some places encoded with smaller images."""
    if not isinstance(rows, EncodedRows):
        return [smaller.get(index, row) for index, row in enumerate(rows)]
    for index, row in smaller.items():
        rows.table.shrink(int(rows.at[index]), row)
    return rows
