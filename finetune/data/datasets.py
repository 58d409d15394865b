"""The rows of datasets, mixed as the recipe says: names in dataset_info.json, data files, folders, or hubs' ids."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from finetune.data.formats import COLUMNS, FORMATS, OPENAI_TAGS, TAGS, Format, Row, detect, make_row
from finetune.data.hub import download, is_hub_id, modelscope_wanted
from finetune.data.records import SUFFIXES, read_json, read_records
from finetune.data.remote_images import fetch_images
from finetune.errors import FinetuneError
from finetune.recipe.schema import Recipe

CAPTIONS = "metadata.jsonl"


@dataclass(frozen=True)
class Dataset:
    """The rows of a split and the sha256 of the files they came from."""

    rows: list[Row]
    digest: str


@dataclass(frozen=True)
class Source:
    """A dataset's files, and how to read them: its format, or None to go by the first record; media: for that case."""

    files: list[Path]
    form: Format | None
    media: Path


def load_rows(names: str, recipe: Recipe) -> Dataset:
    """The rows of the named datasets, mixed. Raises FinetuneError for the first row that is broken."""
    digest = hashlib.sha256()
    datasets = []
    for name in dataset_names(names):
        rows: list[Row] = []
        for row in read_rows(name, recipe, digest):
            if isinstance(row, FinetuneError):
                raise row
            rows.append(row)
        if not rows:
            raise FinetuneError(f"The dataset {name} has no rows.")
        datasets.append(rows)
    return Dataset(mix(datasets, recipe), digest.hexdigest())


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
    """Whose turn it is, without end."""
    random = np.random.default_rng(seed)
    while True:
        yield from range(count) if shares is None else random.choice(count, size=1000, p=shares).tolist()


def read_rows(name: str, recipe: Recipe, digest: Any) -> Iterator[Row | FinetuneError]:
    """Every row of one dataset, or what is wrong with it. Raises FinetuneError if it cannot be read at all.

    digest: a hash object that gets the data files' bytes.
    """
    return fetch_images(_local_rows(name, recipe, digest), recipe)


def _local_rows(name: str, recipe: Recipe, digest: Any) -> Iterator[Row | FinetuneError]:
    source = _find(name, recipe)
    number = 0
    for path in source.files:
        if path.is_file():
            digest.update(path.read_bytes())
        records = read_records(path)
        form = source.form
        if form is None:
            first = next(records, None)
            if first is None:
                continue
            form, records = detect(first, source.media, str(path)), chain([first], records)
        for line, record in enumerate(records, 1):
            number += 1
            if recipe.max_samples and number > recipe.max_samples:
                return
            try:
                yield make_row(record, form, f"{path.name}, row {line}")
            except FinetuneError as error:
                yield error


def _find(name: str, recipe: Recipe) -> Source:
    """A dataset's files. Raises FinetuneError."""
    folder = Path(recipe.dataset_dir)
    media = Path(recipe.media_dir) if recipe.media_dir else None
    bare = Path(name)
    if bare.is_dir():
        return Source(_data_files(bare, "train"), None, media or bare)
    if bare.suffix in SUFFIXES:
        return Source([bare], None, media or bare.parent)
    known = read_json(folder / "dataset_info.json") if (folder / "dataset_info.json").exists() else None
    if isinstance(known, dict) and name in known:
        return _entry(known[name], folder, media, f"{folder}/dataset_info.json, {name}")
    if is_hub_id(name):
        found = download(name, "dataset")
        return Source(_data_files(found, "train"), None, media or found)
    if not isinstance(known, dict):
        raise FinetuneError(f"{folder}/dataset_info.json does not exist or holds no datasets, so {name!r} is unknown.")
    raise FinetuneError(f"{folder}/dataset_info.json has no dataset {name!r}; it has {', '.join(known)}.")


def _data_files(folder: Path, split: str) -> list[Path]:
    """A folder's captions, or its data files of the split (all, if no name says a split). Raises FinetuneError.

    A file belongs to a split by the words of its path: train.jsonl, data/train-00000-of-00002.parquet, as on
    https://huggingface.co/docs/hub/datasets-file-names-and-splits.
    """
    if (folder / CAPTIONS).is_file():
        return [folder / CAPTIONS]
    files = sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES and path.name != "dataset_info.json")
    words = {path: set(_words(str(path.relative_to(folder)))) for path in files}
    splits = {"train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation"}
    if any(found & splits for found in words.values()):
        wanted = {split, "training"} if split == "train" else {split}
        files = [path for path in files if words[path] & wanted]
    if not files:
        raise FinetuneError(f"The dataset folder {folder} has no {CAPTIONS} and no data file of the split {split!r}.")
    return files


def _words(path: str) -> list[str]:
    return "".join(character if character.isalnum() else " " for character in path.lower()).split()


def _entry(entry: Any, folder: Path, media: Path | None, where: str) -> Source:
    """An entry of dataset_info.json with LLaMA-Factory's defaults filled in."""
    if not isinstance(entry, dict):
        raise FinetuneError(f"{where}: an entry must be an object.")
    unknown = entry.keys() - {"file_name", "hf_hub_url", "ms_hub_url", "split", "formatting", "columns", "tags"}
    if unknown:
        raise FinetuneError(f"{where}: the key {min(unknown)} is not supported.")
    if not all(isinstance(entry.get(key, ""), str) for key in ("file_name", "hf_hub_url", "ms_hub_url", "split")):
        raise FinetuneError(f"{where}: file_name, hf_hub_url, ms_hub_url and split are texts.")
    kind = entry.get("formatting", "alpaca")
    if kind not in FORMATS:
        raise FinetuneError(f"{where}: the formatting {kind!r} is not supported; use {', '.join(FORMATS)}.")
    default_columns = COLUMNS | ({"messages": "messages"} if kind == "openai" else {})
    default_tags = OPENAI_TAGS if kind == "openai" else TAGS
    columns, tags = entry.get("columns", {}), entry.get("tags", {})
    for given, known, what in ((columns, COLUMNS, "columns"), (tags, TAGS, "tags")):
        if not isinstance(given, dict) or not given.keys() <= known.keys():
            raise FinetuneError(f"{where}: {what} may have {', '.join(known)}; not {given!r}.")
    if entry.get("file_name"):
        path, media = folder / entry["file_name"], media or folder
        files = _data_files(path, entry.get("split", "train")) if path.is_dir() else [path]
    elif hub_id := entry.get("ms_hub_url" if modelscope_wanted() else "hf_hub_url") or entry.get("hf_hub_url"):
        found = download(hub_id, "dataset")
        files, media = _data_files(found, entry.get("split", "train")), media or found
    else:
        raise FinetuneError(f"{where}: an entry needs a file_name, or an hf_hub_url or ms_hub_url.")
    return Source(files, Format(kind, media, default_columns | columns, default_tags | tags), media)
