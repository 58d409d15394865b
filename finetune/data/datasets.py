"""The rows of datasets, mixed as the recipe says."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.data.remote_images import fetch_images
from finetune.data.sources import find_source
from finetune.data.tables.read_file import Reading, read_file
from finetune.data.tables.rows import Rows, joined
from finetune.errors import FinetuneError
from finetune.recipe.schema import Recipe
from modelfiles import counted


@dataclass(frozen=True)
class Dataset:
    """The sound rows of a split, mixed, and the sha256 of the files they came from.

    notes: fields that were not used; broken: what is wrong with rows that were left out.
    """

    rows: Rows
    digest: str
    notes: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()


@dataclass(frozen=True)
class Parts:
    """The rows of each dataset, broken ones among them, before they are mixed."""

    names: list[str]
    rows: list[Rows]
    digest: str
    notes: tuple[str, ...]

    @property
    def together(self) -> Rows:
        """The rows of all datasets one after another."""
        return joined(self.rows)

    def mixed(self, sound: Any, recipe: Recipe) -> Any:
        """The numbers, in `together`, of the sound rows as the recipe mixes their datasets.

        sound: [R] bool, of the rows together. Raises FinetuneError if a dataset has no sound row.
        """
        numbers, start = [], 0
        for name, rows in zip(self.names, self.rows, strict=True):
            numbers.append(start + np.flatnonzero(sound[start : start + len(rows)]))
            start += len(rows)
            if not len(numbers[-1]):
                raise FinetuneError(f"The dataset {name} has no rows{' that can be used' if len(rows) else ''}.")
        return mix(numbers, recipe)


def load_rows(names: str, recipe: Recipe) -> Dataset:
    """The rows of the named datasets, mixed. Raises FinetuneError for the first row that is broken.

    With bad_rows: skip broken rows are left out, and named in `broken`.
    """
    parts = read_datasets(names, recipe)
    rows = parts.together
    sound, broken = np.ones(len(rows), dtype=bool), []
    for number, row in enumerate(rows):
        if isinstance(row, FinetuneError):
            if recipe.bad_rows == "error":
                raise row
            sound[number] = False
            broken.append(row.message)
    return Dataset(rows.take(parts.mixed(sound, recipe)), parts.digest, parts.notes, tuple(broken))


def read_datasets(names: str, recipe: Recipe) -> Parts:
    """The rows of the named datasets. Raises FinetuneError if one cannot be read at all."""
    digest, known = hashlib.sha256(), dataset_names(names)
    notes: list[str] = []
    rows = [read_rows(name, recipe, digest, notes) for name in known]
    return Parts(known, rows, digest.hexdigest(), tuple(notes))


def dataset_names(names: str) -> list[str]:
    """The names in a comma-separated list. Raises FinetuneError if there are none."""
    found = [part.strip() for part in names.split(",") if part.strip()]
    if not found:
        raise FinetuneError("dataset: the list of names is empty.")
    return found


def mix(datasets: Sequence[Any], recipe: Recipe) -> Any:
    """The numbers of several datasets' rows in one array, as LLaMA-Factory and `datasets.interleave_datasets` do.

    Interleaved without probabilities, the datasets take turns; with them, each next row's dataset is drawn. `under`
    stops when the first dataset is used up, `over` when all are, shorter ones starting over. Raises FinetuneError.
    """
    if recipe.mix_strategy == "concat" or len(datasets) == 1:
        return np.concatenate(datasets)
    shares = recipe.interleave_shares
    if shares is not None and len(shares) != len(datasets):
        raise FinetuneError(
            f"interleave_probs has {counted(len(shares), 'value')} for {counted(len(datasets), 'dataset')}."
        )
    over = recipe.mix_strategy == "interleave_over"
    used, next_row = [False] * len(datasets), [0] * len(datasets)
    rows: list[int] = []
    for drawn in _turns(len(datasets), shares, recipe.seed):
        # Without probabilities only whole rounds count.
        if (shares is not None or drawn == 0) and (all(used) if over else any(used)):
            break
        rows.append(datasets[drawn][next_row[drawn]])
        next_row[drawn] = (next_row[drawn] + 1) % len(datasets[drawn])
        used[drawn] |= next_row[drawn] == 0
    return np.array(rows, dtype=np.int64)


def _turns(count: int, shares: Sequence[float] | None, seed: int) -> Iterator[int]:
    """The index of the dataset that gives the next row, without end."""
    random = np.random.default_rng(seed)
    while True:
        yield from range(count) if shares is None else random.choice(count, size=1000, p=shares).tolist()


def read_rows(name: str, recipe: Recipe, digest: Any, notes: list[str]) -> Rows:
    """Every row of one dataset, or what is wrong with it. Raises FinetuneError if it cannot be read at all.

    digest: a hash object that gets the data files' bytes; notes: gets what a user should know of the fields.
    """
    source = find_source(name, recipe)
    limit = recipe.max_samples if source.num_samples is None else None
    files = []
    for file in source.files:
        reading = Reading(
            source.layout,
            source.named,
            recipe.box_format,
            recipe.stage == "dpo",
            limit,
            recipe.preprocessing_num_workers,
        )
        files.append(read_file(file, reading, digest))
        notes += files[-1].notes
        if limit is not None and (limit := limit - len(files[-1])) <= 0:
            break
    rows = Rows(files)
    if source.num_samples is not None:
        rows = rows.take(_draw(len(rows), source.num_samples, recipe.seed))
    rows = rows[: recipe.max_samples]
    wanted = np.intersect1d(rows.remote(), rows.at).tolist()
    failures = fetch_images(map(rows.as_written, wanted), recipe)
    failed = {number: wrong for number, wrong in zip(wanted, failures, strict=True) if wrong is not None}
    return Rows(files, rows.at, failed)


def _draw(rows: int, count: int, seed: int) -> Any:
    """So many numbers of rows in a random order: each once, and some again if that is more than there are."""
    random = np.random.default_rng(seed)
    order = random.permutation(rows)[:count]
    if rows and count > rows:
        order = np.concatenate([order, random.choice(rows, size=count - rows)])
    return order
