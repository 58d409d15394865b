"""What a folder of data holds: data files in a layout of finetune's, or pictures with captions or in class folders."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from finetune.data.formats import CAPTION_PROMPT
from finetune.data.records import SUFFIXES
from finetune.data.row_media import IMAGE
from finetune.data.sources import find_source
from finetune.errors import FinetuneError
from finetune.recipe.load import make_recipe
from finetune.recipe.schema import Recipe
from studio.datasets.archives import JUNK
from studio.datasets.records import ORIGINAL_BOXES
from studio.errors import StudioError

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
CAPTIONS = (".txt", ".caption")
MAX_CAPTION_BYTES = 100_000
INFO = "dataset_info.json"
HELD_OUT = ("validation", "valid", "val", "dev", "eval", "evaluation", "test", "testing")
TRAIN, VALIDATION = "train", "validation"
MAX_LISTED_CLASSES = 30  # more would make the question longer than a picture


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


def data_files(root: Path) -> list[Path]:
    """The files below a folder that finetune reads rows from."""
    return sorted(path for path in root.rglob("*") if path.suffix in SUFFIXES and not is_hidden(path, root))


def is_hidden(path: Path, root: Path) -> bool:
    """Whether a path below `root` is nothing that a person put there."""
    return any(part.startswith(".") or part in JUNK for part in path.relative_to(root).parts)


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


@dataclass(frozen=True)
class PictureFolder:
    """Pictures without a data file. kind: captions, classes, or pictures alone; classes: the folders' names."""

    kind: str
    pictures: list[Path]
    classes: list[str]

    @property
    def question(self) -> str:
        """What is asked of each picture, unless somebody says something else."""
        if self.kind != "classes":
            return CAPTION_PROMPT
        listed = f"Answer with one of: {', '.join(self.classes)}."
        short = len(self.classes) <= MAX_LISTED_CLASSES
        return f"What is shown in this image? {listed if short else 'Answer with its class alone.'}"


def find_pictures(root: Path) -> PictureFolder | None:
    """The pictures below a folder, and what their answers are; None if there are none."""
    pictures = sorted(p for p in root.rglob("*") if p.suffix.lower() in PICTURES and not is_hidden(p, root))
    if not pictures:
        return None
    if any(_caption_file(picture) for picture in pictures):
        return PictureFolder("captions", pictures, [])
    classes = sorted({picture.parent.name for picture in pictures})
    in_folders = all(len(_below_split(picture, root)) > 1 for picture in pictures)
    if in_folders and len(classes) > 1:
        return PictureFolder("classes", pictures, classes)
    return PictureFolder("pictures", pictures, [])


def _below_split(picture: Path, root: Path) -> tuple[str, ...]:
    parts = picture.relative_to(root).parts
    return parts[1:] if len(parts) > 1 and (parts[0].lower() in (TRAIN, "training", *HELD_OUT)) else parts


def picture_split(picture: Path, root: Path) -> str:
    """The split that a picture's first folder names."""
    parts = picture.relative_to(root).parts
    return VALIDATION if len(parts) > 1 and parts[0].lower() in HELD_OUT else TRAIN


def picture_records(
    found: PictureFolder, split: str, root: Path, question: str
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """(picture, question-and-answer record) of each picture of a split; without a caption the answer is empty."""
    for picture in found.pictures:
        if picture_split(picture, root) != split:
            continue
        answer = picture.parent.name if found.kind == "classes" else ""
        caption = _caption_file(picture)
        if caption is not None:
            answer = _read_caption(caption)
        yield picture, {"query": IMAGE + question, "response": answer, "images": [str(picture)]}


def _caption_file(picture: Path) -> Path | None:
    """cat.txt for cat.jpg, or cat.jpg.txt."""
    names = [name for suffix in CAPTIONS for name in (picture.with_suffix(suffix), Path(f"{picture}{suffix}"))]
    return next((name for name in names if name.is_file()), None)


def _read_caption(path: Path) -> str:
    with path.open("rb") as file:
        data = file.read(MAX_CAPTION_BYTES)
    for encoding in ("utf-8-sig", "gb18030"):
        try:
            return data.decode(encoding).strip()
        except UnicodeDecodeError:
            continue
    return data.decode("latin-1").strip()


def common_tail(first: Path, second: Path) -> int:
    """How many parts of the paths are the same, from the end."""
    pairs = zip(reversed(first.parts), reversed(second.parts), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
