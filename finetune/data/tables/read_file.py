"""One data file to its rows: each record goes through the one reader, in several processes where there are many."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from finetune.data.formats import Row, make_row
from finetune.data.layouts import Layout, detect
from finetune.data.pairs.records import as_llamafactory
from finetune.data.records import Line, parsed, read_records, read_unparsed
from finetune.data.row_fields import FIELDS
from finetune.data.sources import DataFile
from finetune.data.tables.cache import code_version, kept_file, scratch_file
from finetune.data.tables.processes import spread
from finetune.data.tables.row_file import RowFile, pack, write_row_file
from finetune.errors import FinetuneError

if TYPE_CHECKING:  # the studio reads rows without loading Arrow before it has to
    import pyarrow as pa

TASK_ROWS = 1000
TASK_BYTES = 2**23  # of texts and images in the records that go to a process at once
READ_BYTES = 2**20


@dataclass(frozen=True)
class Reading:
    """How a data file is read.

    layout: None to go by its first record; named: the columns that dataset_info.json names itself; ranking: whether
    records are pairs of answers; limit: records to read, None for all; processes: None for one a core.
    """

    layout: Layout | None
    named: tuple[str, ...]
    box_format: str | None
    ranking: bool
    limit: int | None
    processes: int | None


def read_file(file: DataFile, reading: Reading, digest: Any) -> RowFile:
    """The rows of a data file, and what is wrong with those that are broken.

    digest: a hash object that gets the file's bytes. Raises FinetuneError if it cannot be read at all.
    """
    import pyarrow as pa

    key = hashlib.sha256()
    how: list[Any] = [code_version(), file.path.name, str(file.media), reading.named, reading.box_format]
    how += [reading.ranking, reading.limit]
    layout = None if reading.layout is None else asdict(replace(reading.layout, media=Path()))
    key.update(json.dumps([*how, layout], default=str).encode())
    _hash(file, key, digest)
    write = partial(_write, file, reading)
    if file.path.suffix == ".tar":  # its images are in a cache of their own, which may be emptied
        owner = _Owner()
        rows = RowFile(scratch_file(write, owner), file.path.name)
        rows.owner = owner  # type: ignore[attr-defined]
        return rows
    path = kept_file(key.hexdigest(), write)
    try:
        return RowFile(path, file.path.name)
    except (OSError, pa.ArrowException):  # cut short by a crash of the machine, or removed just now
        path.unlink(missing_ok=True)
        return RowFile(kept_file(key.hexdigest(), write), file.path.name)


class _Owner:
    """Whose end is the end of a scratch file."""


def _hash(file: DataFile, *hashes: Any) -> None:
    try:
        for piece in _pieces(file):
            for each in hashes:
                each.update(piece)
    except OSError:  # which reading it will say better
        pass


def _pieces(file: DataFile) -> Iterator[bytes]:
    if file.path.is_dir():
        yield from (repr(record).encode() for record in read_records(file.path, file.split))
        return
    with file.path.open("rb") as data:
        while piece := data.read(READ_BYTES):
            yield piece


def _write(file: DataFile, reading: Reading, target: BinaryIO) -> None:
    notes: list[str] = []
    write_row_file(target, _batches(file, reading, notes), notes)


def _batches(file: DataFile, reading: Reading, notes: list[str]) -> Iterator[pa.RecordBatch]:
    """The file's rows, and after them the columns that no row has. notes: gets the fields that are not read."""
    path, layout = file.path, reading.layout
    records: Iterator[Any] = islice(read_unparsed(path, file.split), reading.limit)
    read_record = partial(_record, path, reading.ranking and layout is None)
    if layout is None:
        begun, broken = [], []  # records up to the first that can tell the layout; what is wrong with those before it
        for record in records:
            begun.append(record)
            first = read_record(record)
            if not isinstance(first, FinetuneError):
                break
            broken.append(first)
        if len(broken) == len(begun):
            yield pack(broken)
            return
        layout, records = detect(first, file.media, str(path)), chain(begun, records)
    layout = replace(layout, media=file.media, box_format=reading.box_format, ranking=reading.ranking)
    fields: dict[str, None] = {}  # in order
    read = 0
    how = partial(tuple, (layout, path.name, read_record))
    for rows, found in spread(_convert, how, _tasks(records), reading.processes):
        fields.update(dict.fromkeys(found))
        read += len(rows)
        yield rows
    if reading.limit is not None and read >= reading.limit:
        return  # what was not read may hold the columns
    missing = [column for column in reading.named if fields and column not in fields]
    yield pack(
        [
            FinetuneError(
                f"{path.name}: dataset_info.json names the column {column!r}, which no row has; rows have "
                f"{', '.join(map(str, fields))}."
            )
            for column in missing
        ]
    )
    unused = [field for field in fields if field not in layout.known_fields() and field not in FIELDS]
    if unused:
        notes.append(f"{path.name}: not used: {', '.join(map(str, unused))}")


def _record(path: Path, is_pair: bool, record: Any) -> Any:
    """A record of the file, parsed, and a pair with LLaMA-Factory's fields; or what is wrong with it."""
    record = parsed(path, record)
    return as_llamafactory(record) if is_pair else record


def _tasks(records: Iterator[Any]) -> Iterator[tuple[int, list[Any]]]:
    """(the number of the first, records): so many that a process has something to do and memory suffices."""
    first, task, weight = 1, [], 0
    for record in records:
        task.append(record)
        weight += _weight(record)
        if len(task) == TASK_ROWS or weight > TASK_BYTES:
            yield first, task
            first, task, weight = first + len(task), [], 0
    if task:
        yield first, task


def _weight(value: Any) -> int:
    """Bytes of the texts and images in a record, about."""
    if isinstance(value, Line):
        return len(value.text)
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_weight, value.values()))
    return sum(map(_weight, value)) if isinstance(value, list) else 0


def _convert(
    how: tuple[Layout, str, Callable[[Any], Any]], task: tuple[int, list[Any]]
) -> tuple[pa.RecordBatch, list[str]]:
    """The rows of records, and the names of their fields."""
    (layout, name, read_record), (first, records) = how, task
    rows: list[Row | FinetuneError] = []
    fields: dict[str, None] = {}
    for number, record in enumerate(map(read_record, records), first):
        if isinstance(record, FinetuneError):
            rows.append(record)
            continue
        if isinstance(record, dict):
            fields.update(dict.fromkeys(record))
        try:
            rows.append(make_row(record, layout, f"{name}, row {number}"))
        except FinetuneError as error:
            rows.append(error)
    return pack(rows), list(fields)
