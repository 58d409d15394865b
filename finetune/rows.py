"""The rows of datasets: named in dataset_info.json, or a data file, or a folder of images with captions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from finetune.errors import FinetuneError
from finetune.formats import COLUMNS, FORMATS, OPENAI_TAGS, TAGS, Format, Row, detect, make_row
from finetune.recipe import Recipe
from finetune.records import SUFFIXES, read_json, read_records

CAPTIONS = "metadata.jsonl"


@dataclass(frozen=True)
class Dataset:
    """The rows of a split and the sha256 of the files they came from."""

    rows: list[Row]
    digest: str


def load_rows(names: str, recipe: Recipe) -> Dataset:
    """The rows of the named datasets, one after the other. Raises FinetuneError for the first row that is broken."""
    rows: list[Row] = []
    digest = hashlib.sha256()
    for row in read_rows(names, recipe, digest):
        if isinstance(row, FinetuneError):
            raise row
        rows.append(row)
    if not rows:
        raise FinetuneError(f"The dataset {names} has no rows.")
    return Dataset(rows, digest.hexdigest())


def read_rows(names: str, recipe: Recipe, digest: Any) -> Iterator[Row | FinetuneError]:
    """Every row, or what is wrong with it. Raises FinetuneError for a dataset that cannot be read at all.

    digest: a hash object that gets the data files' bytes.
    """
    for name in [part.strip() for part in names.split(",") if part.strip()]:
        path, form = _find(name, recipe)
        if path.is_file():
            digest.update(path.read_bytes())
        records = read_records(path)
        if form is None:
            first = next(records, None)
            if first is None:
                continue
            media = Path(recipe.media_dir) if recipe.media_dir else path.parent
            form, records = detect(first, media, str(path)), chain([first], records)
        for number, record in enumerate(records, 1):
            if recipe.max_samples and number > recipe.max_samples:
                break
            try:
                yield make_row(record, form, f"{path.name}, row {number}")
            except FinetuneError as error:
                yield error


def _find(name: str, recipe: Recipe) -> tuple[Path, Format | None]:
    """The data file of a dataset, and its format if dataset_info.json says it. Raises FinetuneError."""
    folder = Path(recipe.dataset_dir)
    bare = Path(name)
    if bare.is_dir():
        if not (bare / CAPTIONS).is_file():
            raise FinetuneError(f"The dataset folder {bare} has no {CAPTIONS}.")
        return bare / CAPTIONS, None
    if bare.suffix in SUFFIXES:
        return bare, None
    info = read_json(folder / "dataset_info.json")
    if not isinstance(info, dict) or name not in info:
        known = ", ".join(info) if isinstance(info, dict) else "nothing"
        raise FinetuneError(f"{folder}/dataset_info.json has no dataset {name!r}; it has {known}.")
    media = Path(recipe.media_dir) if recipe.media_dir else folder
    return _entry(info[name], folder, media, f"{folder}/dataset_info.json, {name}")


def _entry(entry: Any, folder: Path, media: Path, where: str) -> tuple[Path, Format]:
    """An entry of dataset_info.json with LLaMA-Factory's defaults filled in."""
    if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
        raise FinetuneError(f"{where}: an entry needs a file_name.")
    unknown = entry.keys() - {"file_name", "formatting", "columns", "tags"}
    if unknown:
        raise FinetuneError(f"{where}: the key {min(unknown)} is not supported.")
    kind = entry.get("formatting", "alpaca")
    if kind not in FORMATS:
        raise FinetuneError(f"{where}: the formatting {kind!r} is not supported; use {', '.join(FORMATS)}.")
    default_columns = COLUMNS | ({"messages": "messages"} if kind == "openai" else {})
    default_tags = OPENAI_TAGS if kind == "openai" else TAGS
    columns, tags = entry.get("columns", {}), entry.get("tags", {})
    for given, known, what in ((columns, COLUMNS, "columns"), (tags, TAGS, "tags")):
        if not isinstance(given, dict) or not given.keys() <= known.keys():
            raise FinetuneError(f"{where}: {what} may have {', '.join(known)}; not {given!r}.")
    return folder / entry["file_name"], Format(kind, media, default_columns | columns, default_tags | tags)
