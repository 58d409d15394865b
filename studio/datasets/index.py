"""The rows of one version in a SQLite file: any page of any filter is read without reading the rest."""

from __future__ import annotations

import json
import os
import re
import sqlite3
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from studio.datasets.records import picture_names

SCHEMA = """
CREATE TABLE rows (
    number INTEGER PRIMARY KEY,
    split TEXT NOT NULL,
    source TEXT NOT NULL,      -- the file it came from
    place TEXT NOT NULL,       -- where in it: "rows.jsonl, row 3"
    problem TEXT,              -- why it cannot be trained on; NULL if it can
    tokens INTEGER NOT NULL,   -- about
    flagged INTEGER NOT NULL DEFAULT 0,
    left_out INTEGER NOT NULL DEFAULT 0,
    changed INTEGER NOT NULL DEFAULT 0,  -- since the version before
    line INTEGER,              -- its line in the split's file, NULL if it is not in it
    twins INTEGER              -- the group of rows with the same or nearly the same picture
);
-- JSON, as `lensmith train` reads it, or as it was if it cannot be read; apart, so that filters do not read it.
CREATE TABLE records (number INTEGER PRIMARY KEY, record TEXT NOT NULL);
CREATE TABLE pictures (path TEXT PRIMARY KEY, width INTEGER, height INTEGER, problem TEXT);
CREATE INDEX by_problem ON rows (problem IS NULL, number);
CREATE INDEX by_tokens ON rows (tokens, number);
CREATE INDEX sound_by_tokens ON rows (tokens, number) WHERE problem IS NULL;
CREATE INDEX by_source ON rows (source, number);
CREATE INDEX by_twins ON rows (twins, number) WHERE twins IS NOT NULL;
CREATE INDEX by_change ON rows (changed) WHERE changed;
CREATE INDEX by_line ON rows (split, line);
"""
Show = Literal["all", "problems", "sound", "flagged", "left_out", "changed", "twins"]
Order = Literal["problems", "file", "longest", "shortest"]
CONDITIONS: dict[Show, str] = {
    "all": "1",
    "problems": "problem IS NOT NULL",
    "sound": "problem IS NULL",
    "flagged": "flagged",
    "left_out": "left_out",
    "changed": "changed",
    "twins": "twins IS NOT NULL",
}
ORDERS: dict[Order, str] = {
    "problems": "problem IS NULL, number",
    "file": "number",
    "longest": "tokens DESC, number",
    "shortest": "tokens, number",
}
COUNTER = slice(24, 28)  # bytes of the file's header in which SQLite counts what was written
SOURCES = 200  # files that a filter names
MAX_SIZES = 10_000  # pictures of a page whose sizes are read: a query can have so many marks
KEPT = 16  # filters and summaries kept in memory: with 100,000 rows each has 400 KB
BUSY_SECONDS = 10.0  # how long a reader waits for a writer
COLUMNS = "number, split, source, place, problem, tokens, flagged, left_out, changed, line, twins"
JOINED = f"SELECT {COLUMNS}, record FROM rows JOIN records USING (number)"


@dataclass(frozen=True)
class IndexedRow:
    """One row as the page shows it. number: from 1, the same in all versions; tokens: about."""

    number: int
    split: str
    source: str
    place: str
    record: Any
    problem: str | None = None
    tokens: int = 0
    flagged: bool = False
    left_out: bool = False
    changed: bool = False
    line: int | None = None
    twins: int | None = None


@dataclass(frozen=True)
class Filter:
    """Which rows, in which order. text: to be found anywhere in a row; tokens: at least and at most."""

    show: Show = "all"
    order: Order = "problems"
    split: str = ""
    source: str = ""
    text: str = ""
    min_tokens: int | None = None
    max_tokens: int | None = None

    def where(self) -> tuple[str, list[Any]]:
        conditions, values = [CONDITIONS[self.show]], list[Any]()
        for column, value in (("split", self.split), ("source", self.source)):
            if value:
                conditions.append(f"{column} = ?")
                values.append(value)
        if self.text:
            conditions.append("number IN (SELECT number FROM records WHERE record LIKE ? ESCAPE '\\')")
            written = re.sub(r"[\\%_]", r"\\\g<0>", json.dumps(self.text, ensure_ascii=False)[1:-1])
            values.append(f"%{written}%")
        for comparison, limit in ((">=", self.min_tokens), ("<=", self.max_tokens)):
            if limit is not None:
                conditions.append(f"tokens {comparison} ?")
                values.append(limit)
        return " AND ".join(conditions), values


@dataclass(frozen=True)
class Page:
    """Some rows of a filter. number: from 1; total: of rows that the filter lets through."""

    rows: list[IndexedRow]
    number: int
    size: int
    total: int
    pictures: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def last(self) -> int:
        """The number of the last page."""
        return max(1, -(-self.total // self.size))


FileState = tuple[Path, int, bytes]  # an index file as it is now: path, inode, SQLite's counter of changes


@dataclass(frozen=True)
class Summary:
    """counts: rows of each kind that can be shown, and of each split ("split:train"); sources: (file, rows) of the
    largest files; lengths: the tokens of each sound row, about, in order.
    """

    counts: dict[str, int]
    sources: list[tuple[str, int]]
    lengths: Sequence[int]


class RowIndex:
    """The index file of a version, or of the changes that are not saved as one yet."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def open(self, write: bool = False) -> Iterator[sqlite3.Connection]:
        """A connection; what was written is committed at the end, or not at all. Raises sqlite3.Error."""
        mode = "rw" if write else "ro"
        uri = f"{self.path.absolute().as_uri()}?mode={mode}"
        with closing(sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS)) as connection, connection:
            yield connection

    @classmethod
    def create(cls, path: Path) -> RowIndex:
        with closing(sqlite3.connect(path)) as connection:
            connection.executescript(SCHEMA)
        return cls(path)

    def add(self, rows: Iterable[IndexedRow]) -> None:
        """Append rows, in one transaction."""
        marks = ", ".join("?" * len(COLUMNS.split(",")))
        given = list(rows)
        with self.open(write=True) as connection:
            connection.executemany(f"INSERT INTO rows ({COLUMNS}) VALUES ({marks})", map(_as_values, given))
            records = ((row.number, json.dumps(row.record, ensure_ascii=False)) for row in given)
            connection.executemany("INSERT INTO records VALUES (?, ?)", records)

    def add_pictures(self, pictures: Iterable[tuple[str, int | None, int | None, str | None]]) -> None:
        """Note (path, width, height, problem) of pictures."""
        with self.open(write=True) as connection:
            connection.executemany("INSERT OR REPLACE INTO pictures VALUES (?, ?, ?, ?)", pictures)

    def page(self, wanted: Filter, number: int, size: int) -> Page:
        """The page of this number, or the nearest there is."""
        found = _numbers(self._state(), wanted)
        total = len(found)
        number = min(max(1, number), max(1, -(-total // size)))
        with self.open() as connection:
            shown = found[(number - 1) * size : number * size]
            query = f"{JOINED} WHERE number IN ({', '.join('?' * len(shown))})"
            by_number = {row.number: row for row in map(_as_row, connection.execute(query, list(shown)))}
            rows = [by_number[row] for row in shown if row in by_number]
            return Page(rows, number, size, total, self._sizes(connection, rows))

    def _state(self) -> FileState:
        with self.path.open("rb") as file:
            return self.path, os.fstat(file.fileno()).st_ino, file.read(COUNTER.stop)[COUNTER]

    def get(self, number: int) -> IndexedRow | None:
        """The row of this number; None if there is none."""
        with self.open() as connection:
            found = connection.execute(f"{JOINED} WHERE number = ?", [number]).fetchone()
        return _as_row(found) if found else None

    def neighbours(self, wanted: Filter, row: IndexedRow) -> tuple[int | None, int | None]:
        """The numbers of the rows before and after this one among those that the filter lets through, by number."""
        where, values = wanted.where()
        found = []
        with self.open() as connection:
            for compared, order in (("<", "DESC"), (">", "ASC")):
                query = f"SELECT number FROM rows WHERE {where} AND number {compared} ? ORDER BY number {order} LIMIT 1"
                found.append(connection.execute(query, [*values, row.number]).fetchone())
        before, after = (line[0] if line else None for line in found)
        return before, after

    def with_pictures(self, limit: int) -> list[int]:
        """The numbers of the first sound rows that have a picture."""
        query = f"{JOINED} WHERE problem IS NULL AND instr(record, ?) ORDER BY number LIMIT ?"
        with self.open() as connection:
            return [_as_row(values).number for values in connection.execute(query, ['"images": ["', limit])]

    def sizes(self, row: IndexedRow) -> dict[str, tuple[int, int]]:
        """(width, height) of the row's pictures by the names that its record gives them."""
        with self.open() as connection:
            return self._sizes(connection, [row])

    def number_at(self, split: str, line: int) -> int | None:
        """The number of the row that is this line (from 1) of a split's file."""
        with self.open() as connection:
            found = connection.execute("SELECT number FROM rows WHERE split = ? AND line = ?", [split, line]).fetchone()
        return found[0] if found else None

    def summary(self) -> Summary:
        """What there is to say of all rows."""
        return _summary(self._state())

    def counts(self) -> dict[str, int]:
        """How many rows there are of each kind that can be shown, and in each split ("split:train")."""
        return self.summary().counts

    def all_rows(self) -> Iterator[IndexedRow]:
        """Every row in order."""
        with self.open() as connection:
            for values in connection.execute(f"{JOINED} ORDER BY number"):
                yield _as_row(values)

    def set(self, numbers: Sequence[int], **values: Any) -> None:
        """Set columns of these rows and mark them as changed. Names are columns, not input."""
        assert values.keys() <= {"record", "problem", "tokens", "flagged", "left_out"}
        record = values.pop("record", None)
        given = values | {"changed": 1}
        assigned = ", ".join(f"{name} = ?" for name in given)
        with self.open(write=True) as connection:
            cursor = connection.cursor()
            cursor.executemany(
                f"UPDATE rows SET {assigned} WHERE number = ?", [[*given.values(), number] for number in numbers]
            )
            if record is not None:
                text = json.dumps(record, ensure_ascii=False)
                connection.executemany(
                    "UPDATE records SET record = ? WHERE number = ?", [[text, number] for number in numbers]
                )

    def _sizes(self, connection: sqlite3.Connection, rows: Sequence[IndexedRow]) -> dict[str, tuple[int, int]]:
        names = list(dict.fromkeys(name for row in rows for name in picture_names(row.record)))[:MAX_SIZES]
        query = f"SELECT path, width, height FROM pictures WHERE width AND path IN ({', '.join('?' * len(names))})"
        return {path: (width, height) for path, width, height in connection.execute(query, names)}


@lru_cache(KEPT)
def _numbers(state: FileState, wanted: Filter) -> Sequence[int]:
    """The numbers of the rows that a filter lets through, in its order."""
    where, values = wanted.where()
    order = "twins, split = 'train', number" if wanted.show == "twins" else ORDERS[wanted.order]
    with RowIndex(state[0]).open() as connection:
        found = connection.execute(f"SELECT number FROM rows WHERE {where} ORDER BY {order}", values)
        return array("I", (number for (number,) in found))


@lru_cache(KEPT)
def _summary(state: FileState) -> Summary:
    selected = ", ".join(f"coalesce(sum(({condition}) != 0), 0)" for condition in CONDITIONS.values())
    largest = "SELECT source, count(*) FROM rows GROUP BY source ORDER BY count(*) DESC, source LIMIT ?"
    with RowIndex(state[0]).open() as connection:
        numbers = connection.execute(f"SELECT {selected} FROM rows").fetchone()
        splits = connection.execute("SELECT split, count(*) FROM rows GROUP BY split").fetchall()
        counts = dict(zip(CONDITIONS, numbers, strict=True)) | {f"split:{name}": count for name, count in splits}
        sources = list(connection.execute(largest, [SOURCES]))
        lengths = connection.execute("SELECT tokens FROM rows WHERE problem IS NULL ORDER BY tokens")
        return Summary(counts, sources, array("I", (tokens for (tokens,) in lengths)))


def _as_values(row: IndexedRow) -> list[Any]:
    return [getattr(row, name.strip()) for name in COLUMNS.split(",")]


def _as_row(values: Sequence[Any]) -> IndexedRow:
    *plain, record = values
    named = dict(zip((name.strip() for name in COLUMNS.split(",")), plain, strict=True))
    flags = {name: bool(named[name]) for name in ("flagged", "left_out", "changed")}
    return IndexedRow(**named | flags, record=json.loads(record))
