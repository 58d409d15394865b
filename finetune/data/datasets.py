"""The rows of datasets, mixed as the recipe says."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

import numpy as np

from finetune.data.formats import Row, make_row
from finetune.data.layouts import detect
from finetune.data.pairs.records import as_llamafactory
from finetune.data.records import read_records
from finetune.data.remote_images import fetch_images
from finetune.data.row_fields import FIELDS
from finetune.data.sources import Source, find_source
from finetune.errors import FinetuneError
from finetune.recipe.schema import Recipe


@dataclass(frozen=True)
class Dataset:
    """The rows of a split and the sha256 of the files they came from. notes: fields that were not used."""

    rows: list[Row]
    digest: str
    notes: tuple[str, ...] = ()


def load_rows(names: str, recipe: Recipe) -> Dataset:
    """The rows of the named datasets, mixed. Raises FinetuneError for the first row that is broken."""
    digest = hashlib.sha256()
    datasets = []
    notes: list[str] = []
    for name in dataset_names(names):
        rows: list[Row] = []
        for row in read_rows(name, recipe, digest, notes):
            if isinstance(row, FinetuneError):
                raise row
            rows.append(row)
        if not rows:
            raise FinetuneError(f"The dataset {name} has no rows.")
        datasets.append(rows)
    return Dataset(mix(datasets, recipe), digest.hexdigest(), tuple(notes))


def dataset_names(names: str) -> list[str]:
    """The names in a comma-separated list. Raises FinetuneError if there are none."""
    found = [part.strip() for part in names.split(",") if part.strip()]
    if not found:
        raise FinetuneError("dataset: the list of names is empty.")
    return found


def mix(datasets: Sequence[list[Row]], recipe: Recipe) -> list[Row]:
    """The rows of several datasets in one list, as `datasets.interleave_datasets` and LLaMA-Factory mix them.

    Interleaved without probabilities, the datasets take turns; with them, each next row's dataset is drawn. `under`
    stops when the first dataset is used up, `over` when all are, shorter ones starting over. Raises FinetuneError.
    """
    if recipe.mix_strategy == "concat" or len(datasets) == 1:
        return list(chain.from_iterable(datasets))
    shares = recipe.interleave_shares
    if shares is not None and len(shares) != len(datasets):
        raise FinetuneError(f"interleave_probs has {len(shares)} values for {len(datasets)} datasets.")
    over = recipe.mix_strategy == "interleave_over"
    used, next_row = [False] * len(datasets), [0] * len(datasets)
    rows: list[Row] = []
    for drawn in _turns(len(datasets), shares, recipe.seed):
        # Without probabilities only whole rounds count.
        if (shares is not None or drawn == 0) and (all(used) if over else any(used)):
            return rows
        rows.append(datasets[drawn][next_row[drawn]])
        next_row[drawn] = (next_row[drawn] + 1) % len(datasets[drawn])
        used[drawn] |= next_row[drawn] == 0
    return rows


def _turns(count: int, shares: Sequence[float] | None, seed: int) -> Iterator[int]:
    """The index of the dataset that gives the next row, without end."""
    random = np.random.default_rng(seed)
    while True:
        yield from range(count) if shares is None else random.choice(count, size=1000, p=shares).tolist()


def read_rows(name: str, recipe: Recipe, digest: Any, notes: list[str] | None = None) -> Iterator[Row | FinetuneError]:
    """Every row of one dataset, or what is wrong with it. Raises FinetuneError if it cannot be read at all.

    digest: a hash object that gets the data files' bytes; notes: gets what a user should know of the fields.
    """
    source = find_source(name, recipe)
    rows = _local_rows(source, recipe, digest, [] if notes is None else notes)
    if source.num_samples is not None:
        rows = _draw(list(rows), source.num_samples, recipe.seed)
    return fetch_images(islice(rows, recipe.max_samples), recipe)


def _draw(rows: list[Row | FinetuneError], count: int, seed: int) -> Iterator[Row | FinetuneError]:
    """So many of the rows in a random order: each once, and some again if that is more than there are."""
    random = np.random.default_rng(seed)
    order = random.permutation(len(rows))[:count].tolist()
    if rows and count > len(rows):
        order += random.choice(len(rows), size=count - len(rows)).tolist()
    return (rows[index] for index in order)


def _local_rows(source: Source, recipe: Recipe, digest: Any, notes: list[str]) -> Iterator[Row | FinetuneError]:
    ranking = recipe.stage == "dpo"
    for file in source.files:
        path = file.path
        if path.is_file():
            digest.update(path.read_bytes())
        records = read_records(path)
        layout = source.layout
        if ranking and layout is None:
            records = map(as_llamafactory, records)
        if layout is None:
            first = next(records, None)
            if first is None:
                continue
            layout, records = detect(first, file.media, str(path)), chain([first], records)
        layout = replace(layout, media=file.media, box_format=recipe.box_format, ranking=ranking)
        fields: dict[str, None] = {}  # in order
        for line, record in enumerate(records, 1):
            if isinstance(record, dict):
                fields.update(dict.fromkeys(record))
            try:
                yield make_row(record, layout, f"{path.name}, row {line}")
            except FinetuneError as error:
                yield error
        for column in source.named:
            if fields and column not in fields:
                yield FinetuneError(
                    f"{path.name}: dataset_info.json names the column {column!r}, which no row has; rows have "
                    f"{', '.join(map(str, fields))}."
                )
        unused = [field for field in fields if field not in layout.known_fields() and field not in FIELDS]
        if unused:
            notes.append(f"{path.name}: not used: {', '.join(map(str, unused))}")
