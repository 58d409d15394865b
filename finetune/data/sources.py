"""Where a dataset's files are: names in dataset_info.json, data files, folders, or hubs' ids."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from finetune.data.hub import download, is_hub_id, modelscope_wanted
from finetune.data.layouts import COLUMNS, FORMATS, OPENAI_TAGS, TAGS, Layout
from finetune.data.pairs.records import ANSWERS
from finetune.data.pictures.captions import find_captions
from finetune.data.pictures.folder import PICTURES, find_pictures, is_hidden, pictures_of, unanswered
from finetune.data.records import SUFFIXES, TEXT, read_json
from finetune.errors import FinetuneError
from finetune.recipe.schema import Recipe

CAPTIONS = "metadata.jsonl"
METADATA = (CAPTIONS, "metadata.csv", "metadata.parquet")
TEXTS = ("file_name", "hf_hub_url", "ms_hub_url", "split", "subset")
ENTRY = {*TEXTS, "formatting", "columns", "tags", "ranking", "num_samples"}


@dataclass(frozen=True)
class DataFile:
    """One file, and the folder that paths of images in it are relative to; or a folder of pictures, and its split."""

    path: Path
    media: Path
    split: str = "train"


@dataclass(frozen=True)
class Source:
    """A dataset's files, and how to read them.

    layout: None to go by each file's first record; named: the columns that dataset_info.json names itself;
    num_samples: rows to draw of it, None for all.
    """

    files: list[DataFile]
    layout: Layout | None = None
    named: tuple[str, ...] = ()
    num_samples: int | None = None


def find_source(name: str, recipe: Recipe, split: str = "train") -> Source:
    """A dataset's files; of a folder or hub's id those of the split. Raises FinetuneError.

    A name that dataset_info.json has is that entry, whatever lies in the current folder under the same name.
    """
    folder = Path(recipe.dataset_dir)
    media = Path(recipe.media_dir) if recipe.media_dir else None
    bare = Path(name)
    is_path = bare.is_dir() or bare.suffix in SUFFIXES
    known = None
    if (folder / "dataset_info.json").exists() and not (is_path and os.sep in name):
        known = read_json(folder / "dataset_info.json")
    if isinstance(known, dict) and name in known:
        location = f"{folder}/dataset_info.json, {name}"
        return _entry(known[name], folder, media, location, recipe.stage == "dpo")
    if bare.is_dir():
        return Source(_data_files(bare, split, media))
    if is_path:
        return Source([DataFile(bare, media or bare.parent)])
    if is_hub_id(name):
        return Source(_data_files(download(name, "dataset"), split, media))
    if not isinstance(known, dict):
        raise FinetuneError(f"{folder}/dataset_info.json does not exist or holds no datasets, so {name!r} is unknown.")
    raise FinetuneError(f"{folder}/dataset_info.json has no dataset {name!r}; it has {', '.join(known)}.")


def _data_files(folder: Path, split: str, media: Path | None, subset: str | None = None) -> list[DataFile]:
    """A folder's metadata files, or its data files of the split (all, if no name says a split). Raises FinetuneError.

    A file belongs to a split by the words of its path: train.jsonl, data/train-00000-of-00002.parquet, as on
    https://huggingface.co/docs/hub/datasets-file-names-and-splits. Metadata files describe the images beside them.
    """
    found = next((folder / name for name in METADATA if (folder / name).is_file()), None)
    if found is not None and subset is None:
        return [DataFile(found, media or folder)]
    files = data_files(folder)
    if subset is not None:
        files = _of_subset(files, folder, subset)
    elif not files:
        return [_picture_folder(folder, split)]
    metadata = [path for path in files if path.name in METADATA]
    files = _of_split(metadata or files, folder, split)
    if not files:
        raise FinetuneError(f"The dataset folder {folder} has no {CAPTIONS} and no data file of the split {split!r}.")
    return [DataFile(path, media or (path.parent if metadata else folder)) for path in files]


def _picture_folder(folder: Path, split: str) -> DataFile:
    """A folder without data files, if it has pictures of the split, with answers. Raises FinetuneError."""
    pictures = find_pictures(folder.absolute())
    if pictures is None or pictures.kind == "pictures":
        missing = unanswered(pictures) if pictures else "no pictures: name the file or folder that holds the data"
        raise FinetuneError(
            f"The dataset folder {folder} has no {CAPTIONS} and no data file of the split {split!r}, and {missing}."
        )
    if not pictures_of(pictures, split):
        raise FinetuneError(f"The dataset folder {folder} has no picture of the split {split!r}.")
    return DataFile(pictures.root, pictures.root, split)


def data_files(folder: Path) -> list[Path]:
    """The data files below a folder: not hidden ones, dataset_info.json, or JSON files that each go with a picture."""
    paths = sorted(path for path in folder.rglob("*") if not is_hidden(path, folder))
    files = [path for path in paths if path.suffix in SUFFIXES and path.name != "dataset_info.json"]
    captions = find_captions([path for path in paths if path.suffix.lower() in PICTURES], files)
    return sorted(set(files) - set(captions.values()))


def _of_split(files: list[Path], folder: Path, split: str) -> list[Path]:
    words = {path: set(_words(str(path.relative_to(folder)))) for path in files}
    splits = {"train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation"}
    if not any(found & splits for found in words.values()):
        return files
    wanted = {split, "training"} if split == "train" else {split}
    return [path for path in files if words[path] & wanted]


def _words(path: str) -> list[str]:
    return "".join(character if character.isalnum() else " " for character in path.lower()).split()


def _of_subset(files: list[Path], folder: Path, subset: str) -> list[Path]:
    """The files of a subset: those that the dataset's card lists, else those of the folder of that name."""
    configs = _card(folder).get("configs")
    for config in configs if isinstance(configs, list) else []:
        if isinstance(config, dict) and config.get("config_name") == subset:
            patterns = list(_patterns(config.get("data_files")))
            return [path for path in files if any(fnmatch(str(path.relative_to(folder)), p) for p in patterns)]
    found = [path for path in files if subset in path.relative_to(folder).parts[:-1]]
    if not found:
        raise FinetuneError(f"The dataset folder {folder} has no subset {subset!r}, in its README.md or as a folder.")
    return found


def _card(folder: Path) -> dict[str, Any]:
    """The YAML at the head of a dataset's README.md."""
    try:
        text = (folder / "README.md").read_text(encoding=TEXT)
        head = yaml.safe_load(text.split("---")[1]) if text.startswith("---") else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        head = None
    return head if isinstance(head, dict) else {}


def _patterns(files: Any) -> Iterable[str]:
    """The paths in a config's data_files: a path, a list, or a list of {"split", "path"}."""
    if isinstance(files, str):
        yield files
    elif isinstance(files, dict):
        yield from _patterns(files.get("path"))
    elif isinstance(files, list):
        for file in files:
            yield from _patterns(file)


def _entry(entry: Any, folder: Path, media: Path | None, location: str, ranking: bool) -> Source:
    """An entry of dataset_info.json with LLaMA-Factory's defaults filled in."""
    if not isinstance(entry, dict):
        raise FinetuneError(f"{location}: an entry must be an object.")
    entry = {key: value for key, value in entry.items() if value is not None or key == "file_name"}
    unknown = entry.keys() - ENTRY
    if unknown:
        raise FinetuneError(f"{location}: the key {min(unknown)} is not supported.")
    if entry.get("ranking") and not ranking:
        raise FinetuneError(
            f"{location}: the key ranking is for preference training: set stage: dpo; for supervised training "
            'on the better answers set "columns": {"response": "chosen"} and ranking to false.'
        )
    if not all(isinstance(entry.get(key, ""), str) for key in TEXTS):
        raise FinetuneError(f"{location}: file_name, hf_hub_url, ms_hub_url and split are texts.")
    count = entry.get("num_samples")
    if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
        raise FinetuneError(f"{location}: num_samples must be a number of rows, not {count!r}.")
    kind = entry.get("formatting", "alpaca")
    if kind not in FORMATS:
        raise FinetuneError(f"{location}: the formatting {kind!r} is not supported; use {', '.join(FORMATS)}.")
    default_columns = COLUMNS | ({"messages": "messages"} if kind == "openai" else {})
    default_tags = OPENAI_TAGS if kind == "openai" else TAGS
    columns, tags = entry.get("columns", {}), entry.get("tags", {})
    allowed = COLUMNS | (dict(zip(ANSWERS, ANSWERS, strict=True)) if ranking else {})
    for given, known, what in ((columns, allowed, "columns"), (tags, TAGS, "tags")):
        if not isinstance(given, dict) or not given.keys() <= known.keys():
            raise FinetuneError(f"{location}: {what} may have {', '.join(known)}; not {given!r}.")
    files = _entry_files(entry, folder, media, location)
    layout = Layout(kind, folder, default_columns | columns, default_tags | tags)
    if files[0].path.is_dir() and not (columns or tags):  # the layout of pictures shows by itself
        return Source(files, num_samples=count)
    return Source(files, layout, tuple(columns.values()), count)


def _entry_files(entry: dict[str, Any], folder: Path, media: Path | None, location: str) -> list[DataFile]:
    split, subset = entry.get("split", "train"), entry.get("subset")
    if entry.get("file_name"):
        path = folder / entry["file_name"]
        if path.is_dir():
            files = _data_files(path, split, media, subset)
            beside = {file.path for file in files if file.path.name in METADATA or file.path.is_dir()}
            return [file if file.path in beside else DataFile(file.path, media or folder) for file in files]
        return [DataFile(path, media or folder)]
    if hub_id := entry.get("ms_hub_url" if modelscope_wanted() else "hf_hub_url") or entry.get("hf_hub_url"):
        return _data_files(download(hub_id, "dataset"), split, media, subset)
    raise FinetuneError(f"{location}: an entry needs a file_name, or an hf_hub_url or ms_hub_url.")
