"""Records of data files (JSON, JSON lines, CSV, parquet, WebDataset's tar) and of folders of pictures as dicts."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from finetune.data.pictures.folder import read_pictures
from finetune.data.webdataset import read_shard
from finetune.errors import FinetuneError
from modelfiles import counted

SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".tar")
PARQUET_ROWS = 256  # read at once
PIECE = 2**20  # characters of a JSON list read at once
BLANK = re.compile(r"[ \t\n\r]*")
DELIMITERS = ",;\t|"
TEXT = "utf-8-sig"  # with or without the byte order mark that Windows programs write
csv.field_size_limit(2**30)  # an image in base64 is longer than the default, 131,072 characters


class Line(NamedTuple):
    """A line of JSON lines before it is parsed, which another process can do. number: from 1."""

    number: int
    text: str


def read_records(path: Path, split: str = "train") -> Iterator[Any]:
    """The records of one file in order; one that is broken is a FinetuneError, which names the file and the line.

    split: of a folder of pictures, which is read like a file.

    Raises FinetuneError if the file, or the rest of it, cannot be read.
    """
    return map(partial(parsed, path), read_unparsed(path, split))


def parsed(path: Path, record: Any) -> Any:
    """What a line of the file holds; any other record as it is. One that is broken is a FinetuneError."""
    if not isinstance(record, Line):
        return record
    try:
        return json.loads(record.text)
    except (ValueError, RecursionError) as error:
        return FinetuneError(f"{path}, line {record.number}: not JSON: {error}.")


def read_unparsed(path: Path, split: str = "train") -> Iterator[Any]:
    """The records of one file, those of JSON lines as Line, for `parsed`. Raises what read_records raises."""
    try:
        if path.suffix == ".jsonl":
            yield from _jsonl(path)
        elif path.suffix in (".csv", ".tsv"):
            yield from _csv(path)
        elif path.suffix == ".parquet":
            yield from _parquet(path)
        elif path.suffix == ".json":
            yield from _json(path)
        elif path.suffix == ".tar":
            yield from read_shard(path)
        elif path.is_dir():
            yield from read_pictures(path, split)
        else:
            raise FinetuneError(f"The data file {path} must be {', '.join(SUFFIXES)}.")
    except FileNotFoundError:
        raise FinetuneError(f"The data file {path} does not exist.") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FinetuneError(f"The data file {path} cannot be read: {error}.") from None


def read_json(path: Path) -> Any:
    """The value of a JSON file. Raises FinetuneError."""
    try:
        return json.loads(path.read_text(encoding=TEXT))
    except FileNotFoundError:
        raise FinetuneError(f"{path} does not exist.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise FinetuneError(f"{path} cannot be read as JSON: {error}.") from None


def _json(path: Path) -> Iterator[Any]:
    """A list of records; or one record a line, which some tools name .json too."""
    if _is_lines(path):
        yield from _jsonl(path)
        return
    with path.open(encoding=TEXT) as file:
        if file.read(PIECE).lstrip().startswith("["):
            file.seek(0)
            yield from _list(path, file)
            return
    records = read_json(path)
    if isinstance(records, dict) and records and all(map(_is_caption, records.values())):
        raise FinetuneError(
            f"{path} names captions by their pictures, as sd-scripts' metadata does, which is not read: write each "
            "beside its picture (cat.txt for cat.jpg) and move this file away."
        )
    if not isinstance(records, list):
        keys = f" with the keys {', '.join(map(str, records))}"[:200] if isinstance(records, dict) else ""
        raise FinetuneError(f"{path} must hold a JSON list of rows; it holds one {type(records).__name__}{keys}.")
    yield from records


def _is_caption(value: Any) -> bool:
    return isinstance(value, dict) and bool(value.keys() & {"caption", "tags"})


def _list(path: Path, file: TextIO) -> Iterator[Any]:
    """The values of a JSON list, never more of it in memory than a piece or its largest value."""
    decode, text, at, piece = json.JSONDecoder().raw_decode, file.read(PIECE), 0, PIECE
    more = True  # whether the file goes on after the text

    def value(start: int) -> tuple[Any, int]:
        """The value that begins at a place in the text, and where it ends; the end -1 if it is not all there."""
        try:
            found, end = decode(text, start)
        except (ValueError, RecursionError):
            return None, -1
        after = BLANK.match(text, end).end()  # type: ignore[union-attr]
        follows = text[after : after + 1]
        return found, end if follows in (",", "]") or not more else -1  # else a number may go on

    at = BLANK.match(text).end() + 1  # type: ignore[union-attr]
    expects, first = True, True  # whether a value comes next; whether none has come
    while True:
        at = BLANK.match(text, at).end()  # type: ignore[union-attr]
        found, end = value(at) if expects and text[at : at + 1] not in ("", "]") else (None, -1)
        mark = text[at : at + 1]
        if end >= 0:
            yield found
            at, expects, first, piece = end, False, False, PIECE
        elif mark == "," and not expects:
            at, expects = at + 1, True
        elif mark == "]" and (not expects or first):
            if (text[at + 1 :] + file.read(PIECE)).strip():
                break
            return
        elif more:
            added = file.read(piece)
            text, at, more, piece = text[at:] + added, 0, bool(added), piece * 2
        else:
            break
    read_json(path)  # says what is wrong with it
    raise FinetuneError(f"{path} cannot be read as JSON.")


def _is_lines(path: Path) -> bool:
    """Whether the first line is an object of its own, and not the only thing in the file."""
    with path.open(encoding=TEXT) as file:
        if not file.read(PIECE).lstrip().startswith("{"):
            return False
        file.seek(0)
        lines = (line for line in file if line.strip())
        first, second = next(lines, ""), next(lines, "")
    if not second:
        return False
    try:
        return isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _jsonl(path: Path) -> Iterator[Line]:
    with path.open(encoding=TEXT) as file:
        for number, line in enumerate(file, 1):
            if not line.isspace():
                yield Line(number, line)


def _csv(path: Path) -> Iterator[Any]:
    """Rows by the names in the first line, whose fields are separated by what there is most of in it."""
    with path.open(encoding=TEXT, newline="") as file:
        header = file.readline()
        file.seek(0)
        rows = csv.DictReader(file, strict=True, delimiter=max(DELIMITERS, key=header.count))
        for row in rows:
            if None in row:
                yield FinetuneError(
                    f"{path}, line {rows.line_num}: {counted(len(row[None]), 'field more', 'fields more')} than the "
                    "first line names; put fields with a comma in quotes."
                )
                continue
            yield row


def _parquet(path: Path) -> Iterator[Any]:
    """Rows as Python values; an image column of Hugging Face's is {"bytes": ..., "path": ...} there."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=PARQUET_ROWS):
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise FinetuneError(f"The data file {path} is not a readable parquet file: {error}.") from None
