"""Records of data files: json, jsonl, csv and parquet, as dicts."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune.errors import FinetuneError

SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")
PARQUET_ROWS = 256  # read at once


def read_records(path: Path) -> Iterator[Any]:
    """The records of one file in order. Raises FinetuneError naming the file, and the line of a broken one."""
    try:
        if path.suffix == ".jsonl":
            yield from _jsonl(path)
        elif path.suffix == ".csv":
            with path.open(encoding="utf-8", newline="") as file:
                yield from csv.DictReader(file, strict=True)
        elif path.suffix == ".parquet":
            yield from _parquet(path)
        elif path.suffix == ".json":
            records = read_json(path)
            if not isinstance(records, list):
                raise FinetuneError(f"{path} must hold a JSON list of rows.")
            yield from records
        else:
            raise FinetuneError(f"The data file {path} must be {', '.join(SUFFIXES)}.")
    except FileNotFoundError:
        raise FinetuneError(f"The data file {path} does not exist.") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FinetuneError(f"The data file {path} cannot be read: {error}.") from None


def read_json(path: Path) -> Any:
    """The value of a JSON file. Raises FinetuneError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FinetuneError(f"{path} does not exist.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise FinetuneError(f"{path} cannot be read as JSON: {error}.") from None


def _jsonl(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise FinetuneError(f"{path}, line {number}: not JSON: {error}.") from None


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
