"""What a folder of data holds, as finetune reads it: data files, or pictures with captions or in class folders."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from finetune.data.pictures.folder import HELD_OUT, JUNK, PictureFolder
from finetune.data.sources import data_files, find_source
from finetune.errors import FinetuneError
from finetune.recipe.load import make_recipe
from finetune.recipe.schema import Recipe
from studio.datasets.records import ORIGINAL_BOXES
from studio.errors import StudioError

INFO = "dataset_info.json"
TRAIN, VALIDATION = "train", "validation"


@dataclass(frozen=True)
class Part:
    """Rows of one split that finetune reads under one name.

    name: a data file, or an entry of dataset_info.json; recipe: how it is read; split: TRAIN or VALIDATION; file: the
    data file, if it is one.
    """

    name: str
    recipe: Recipe
    split: str
    file: Path | None = None


def reading_recipe(folder: Path, media: Path | None = None) -> Recipe:
    """A recipe that reads the datasets of `folder`, pictures relative to `media`."""
    values: dict[str, Any] = {"model_name_or_path": "", "dataset_dir": str(folder), "box_format": ORIGINAL_BOXES}
    return make_recipe(values | ({"media_dir": str(media)} if media else {}))


def visible(folder: Path) -> list[Path]:
    """What is in the folder but for hidden files and what file managers leave behind, sorted."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.name not in JUNK)


def data_root(folder: Path) -> Path:
    """The folder itself, or the one that is all it has: archives often hold everything in one folder."""
    while len(entries := visible(folder)) == 1 and entries[0].is_dir():
        folder = entries[0]
    return folder


def parts_of(root: Path) -> list[Part]:
    """The parts of a folder's data files, or of one data file. Raises FinetuneError, and StudioError if it has none."""
    if root.is_file():
        return [_part(root, root.parent, TRAIN)]
    entries = _info_entries(root)
    if entries:
        recipe = reading_recipe(root)
        return [Part(name, recipe, VALIDATION if _is_held_out(name) else TRAIN) for name in entries]
    files = data_files(root)
    if not files:
        raise StudioError("data.error_no_rows", path=root.name)
    if len(files) == 1:
        return [_part(files[0], files[0].parent, TRAIN)]
    found = [_part(file.path, file.media, TRAIN) for file in find_source(str(root), reading_recipe(root)).files]
    for split in HELD_OUT:
        try:
            held_out = find_source(str(root), reading_recipe(root), split).files
        except FinetuneError:  # it has none of that split
            continue
        known = {part.file for part in found}
        found += [_part(file.path, file.media, VALIDATION) for file in held_out if file.path not in known]
    return found


def _part(file: Path, media: Path, split: str) -> Part:
    return Part(str(file), reading_recipe(file.parent, media), split, file)


def _info_entries(root: Path) -> list[str]:
    """The datasets that a dataset_info.json of LLaMA-Factory's describes and whose files are here."""
    try:
        known = json.loads((root / INFO).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return []
    entries = known.items() if isinstance(known, dict) else []
    return [
        name
        for name, entry in entries
        if isinstance(entry, dict) and isinstance(file := entry.get("file_name"), str) and (root / file).exists()
    ]


def _is_held_out(name: str) -> bool:
    words = "".join(letter if letter.isalnum() else " " for letter in name.lower()).split()
    return any(word in HELD_OUT for word in words)


def picture_records(found: PictureFolder, split: str, question: str) -> Iterator[dict[str, Any]]:
    """A record of each picture of a split; without a caption that can be read it has no answer yet."""
    for picture in found.pictures:
        if (found.split_of(picture) == TRAIN) == (split == TRAIN):
            try:
                yield found.record(picture, question)
            except FinetuneError:
                yield found.unanswered(picture, question)


def common_tail(first: Path, second: Path) -> int:
    """How many parts of the paths are the same, from the end."""
    pairs = zip(reversed(first.parts), reversed(second.parts), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
