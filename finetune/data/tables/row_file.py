"""The rows of one data file in a memory-mapped Arrow file: each row, or what is wrong with it, is one JSON text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from finetune.data.formats import Row
from finetune.data.remote_images import is_remote
from finetune.data.row_media import Video
from finetune.errors import FinetuneError

if TYPE_CHECKING:  # the studio reads rows without loading Arrow before it has to
    import pyarrow as pa

NOTES = b"notes"


class RowFile:
    """The rows of the data file `name`. remote: [R] the numbers, from 0, of those with an image by URL."""

    def __init__(self, path: Path, name: str) -> None:
        import pyarrow as pa

        self.path, self.name = path, name
        self._reader = pa.ipc.open_file(pa.memory_map(str(path)))
        batches = [self._reader.get_batch(n) for n in range(self._reader.num_record_batches)]
        self._rows = [batch.column(0) for batch in batches]
        self._ends = np.cumsum([len(rows) for rows in self._rows])
        remote = [np.flatnonzero(batch.column(1).to_numpy(zero_copy_only=False)) for batch in batches]
        self.remote = np.concatenate([start + at for start, at in zip(self._starts(), remote, strict=True)]).astype(
            np.int64
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return RowFile, (self.path, self.name)

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def notes(self) -> list[str]:
        """What a user should know of the data file's fields."""
        last = self._reader.get_batch_with_custom_metadata(self._reader.num_record_batches - 1)
        return list(json.loads(last.custom_metadata[NOTES]))

    def __getitem__(self, number: int) -> Row | FinetuneError:
        """The row, or what is wrong with it. number: from 0."""
        batch = int(np.searchsorted(self._ends, number, side="right"))
        at = number - int(self._ends[batch]) + len(self._rows[batch])
        return unpack(self._rows[batch][at].as_py(), self.name, number)

    def read(self, numbers: Any) -> list[Row | FinetuneError]:
        """The same of several rows, which is quicker where they follow one another. numbers: [N] from 0."""
        import pyarrow as pa

        which = np.searchsorted(self._ends, numbers, side="right")
        places = numbers - np.array(self._starts(), np.int64)[which]
        edges = [0, *(np.flatnonzero(np.diff(which)) + 1).tolist(), len(which)]
        texts: list[bytes] = []
        for start, end in pairwise(edges if len(which) else ()):
            texts += self._rows[which[start]].take(pa.array(places[start:end])).to_pylist()
        return [unpack(text, self.name, number) for text, number in zip(texts, numbers.tolist(), strict=True)]

    def _starts(self) -> list[int]:
        return [0, *self._ends[:-1].tolist()] if len(self._rows) else []


@cache
def _schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema([("row", pa.large_binary()), ("remote", pa.bool_())])


def pack(rows: Sequence[Row | FinetuneError]) -> pa.RecordBatch:
    """Rows as a batch of the file."""
    import pyarrow as pa

    texts, remote = [], []
    for row in rows:
        if isinstance(row, Row):
            try:
                texts.append(_text(row))
                remote.append(is_remote(row))
                continue
            except (TypeError, ValueError, RecursionError) as error:
                row = FinetuneError(f"{row.source}: a tool, or a call of one, holds what JSON cannot: {error}.")
        texts.append(json.dumps(row.message).encode())
        remote.append(False)
    return pa.RecordBatch.from_arrays(
        [pa.array(texts, pa.large_binary()), pa.array(remote, pa.bool_())], schema=_schema()
    )


def write_row_file(file: BinaryIO, batches: Iterable[pa.RecordBatch], notes: list[str]) -> None:
    """Writes the batches; `notes`, which may grow until the last one is there, come at the end."""
    import pyarrow as pa

    with pa.ipc.new_file(pa.PythonFile(file, mode="w"), _schema()) as writer:
        for batch in batches:
            writer.write_batch(batch)
        writer.write_batch(pack([]), custom_metadata={NOTES: json.dumps(notes).encode()})


def _text(row: Row) -> bytes:
    videos = [
        [_medium(frame) for frame in video.source]
        if isinstance(video.source, tuple)
        else {"file": _medium(video.source)}
        for video in row.videos
    ]
    images = [_medium(image) for image in row.images]
    return json.dumps([row.messages, images, row.tools, videos, row.unlabelled]).encode()


def _medium(medium: Path | str) -> str | list[str]:
    """A path as a text, what is no path (a URL, a data URI) in a list."""
    return str(medium) if isinstance(medium, Path) else [medium]


def _given(medium: str | list[str]) -> Path | str:
    return _path(medium) if isinstance(medium, str) else medium[0]


@lru_cache(4096)  # rows that follow one another often have the same images
def _path(text: str) -> Path:
    return Path(text)


def unpack(text: bytes, name: str, number: int) -> Row | FinetuneError:
    """What `pack` was given."""
    found = json.loads(text)
    if isinstance(found, str):
        return FinetuneError(found)
    messages, images, tools, videos, unlabelled = found
    return Row(
        messages,
        [_given(image) for image in images],
        tools,
        f"{name}, row {number + 1}",
        [Video(_given(v["file"]) if isinstance(v, dict) else tuple(_given(frame) for frame in v)) for v in videos],
        tuple(unlabelled),
    )
