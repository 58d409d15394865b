"""What a folder of pictures holds: their captions, or their classes, and the split that each belongs to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.data.formats import CAPTION_PROMPT
from finetune.data.pictures.captions import SUFFIXES, find_captions, read_caption
from finetune.data.row_media import IMAGE
from finetune.errors import FinetuneError
from modelfiles import counted

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
JUNK = ("__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini")  # what file managers leave behind
TRAIN = ("train", "training")
HELD_OUT = ("validation", "valid", "val", "dev", "eval", "evaluation", "test", "testing")
MAX_LISTED_CLASSES = 30  # more would make the question longer than a picture


@dataclass(frozen=True)
class PictureFolder:
    """Pictures without a data file.

    kind: captions, classes, or pictures alone; top: the folder below which the first folders name splits, or classes;
    classes: the folders' names; captions: the file of each picture that has one.
    """

    root: Path
    kind: str
    pictures: list[Path]
    top: Path
    classes: list[str] = field(default_factory=list)
    captions: dict[Path, Path] = field(default_factory=dict)

    @property
    def question(self) -> str:
        """What is asked of each picture, unless somebody says something else."""
        if self.kind != "classes":
            return CAPTION_PROMPT
        listed = f"Answer with one of: {', '.join(self.classes)}."
        short = len(self.classes) <= MAX_LISTED_CLASSES
        return f"What is shown in this image? {listed if short else 'Answer with its class alone.'}"

    def split_of(self, picture: Path) -> str:
        """The split that the picture's first folder names, `train` if it names none."""
        first = picture.relative_to(self.top).parts[0].lower()
        return first if first in HELD_OUT else TRAIN[0]

    def record(self, picture: Path, question: str) -> dict[str, Any]:
        """The picture as a record, its path relative to the root; without a caption or class the answer is empty.

        Raises FinetuneError if its caption cannot be read.
        """
        asked = self.unanswered(picture, question)
        if self.kind == "classes":
            return asked | {"output": picture.parent.name}
        if picture not in self.captions:
            return asked
        caption = read_caption(self.captions[picture])
        return asked | caption if "output" in caption else caption | {"images": asked["images"]}

    def unanswered(self, picture: Path, question: str) -> dict[str, Any]:
        """The record of a picture that has no answer yet."""
        images = [picture.relative_to(self.root).as_posix()]
        return {"instruction": IMAGE + question, "output": "", "images": images}


def is_hidden(path: Path, root: Path) -> bool:
    """Whether a path below `root` is nothing that a person put there."""
    return any(part.startswith(".") or part in JUNK for part in path.relative_to(root).parts)


def find_pictures(root: Path) -> PictureFolder | None:
    """The pictures below a folder, and what their answers are; None if there are none."""
    files = sorted(path for path in root.rglob("*") if not is_hidden(path, root))
    pictures = [path for path in files if path.suffix.lower() in PICTURES]
    if not pictures:
        return None
    top = _top(root, pictures)
    captions = find_captions(pictures, [path for path in files if path.suffix.lower() in SUFFIXES])
    if captions:
        return PictureFolder(root, "captions", pictures, top, captions=captions)
    folders = {picture.parent for picture in pictures}
    nested = any(above in folders for folder in folders for above in folder.parents)
    classes = sorted({folder.name for folder in folders})
    if not nested and len(classes) > 1 and all(_class_parts(folder, top) for folder in folders):
        return PictureFolder(root, "classes", pictures, top, classes)
    return PictureFolder(root, "pictures", pictures, top)


def _top(root: Path, pictures: list[Path]) -> Path:
    """The deepest folder that all pictures are below, but above the first that is named as a split."""
    below = Path(os.path.commonpath([picture.parent for picture in pictures])).relative_to(root).parts
    splits = (number for number, part in enumerate(below) if part.lower() in (*TRAIN, *HELD_OUT))
    return root.joinpath(*below[: next(splits, len(below))])


def _class_parts(folder: Path, top: Path) -> tuple[str, ...]:
    """The folders that may be a class's: those below `top`, but for a split's."""
    parts = folder.relative_to(top).parts
    return parts[1:] if parts and parts[0].lower() in (*TRAIN, *HELD_OUT) else parts


def read_pictures(folder: Path, split: str) -> Iterator[Any]:
    """The records of a split's pictures; a FinetuneError for one whose answer is missing or cannot be read."""
    found = find_pictures(folder)
    pictures = [] if found is None else pictures_of(found, split)
    for number, picture in enumerate(pictures, 1):
        assert found is not None
        location = f"{folder.name}, row {number}: {picture.relative_to(folder)}"
        try:
            record = found.record(picture, found.question)
        except FinetuneError as error:
            yield FinetuneError(f"{location}: its caption {error.message}")
            continue
        if record.get("output") == "":
            name = picture.with_suffix(SUFFIXES[0]).name
            yield FinetuneError(f"{location} has no caption; write it into {name}, or move the picture out.")
            continue
        yield record


def pictures_of(found: PictureFolder, split: str) -> list[Path]:
    """The pictures of a split; all of them, if no folder is named as a split."""
    named = {part.lower() for picture in found.pictures for part in picture.relative_to(found.top).parts[:-1][:1]}
    if not named & {*TRAIN, *HELD_OUT}:
        return found.pictures
    wanted = TRAIN[0] if split in TRAIN else split
    return [picture for picture in found.pictures if found.split_of(picture) == wanted]


def unanswered(found: PictureFolder) -> str:
    """For pictures that have neither captions nor classes: what to do."""
    count, example = len(found.pictures), f"cat.txt for cat{found.pictures[0].suffix}"
    return (
        f"its {counted(count, 'picture has', 'pictures have')} no answers: write captions beside them "
        f"({example}) or a metadata.jsonl, or sort all of them into one folder a class, none inside another; "
        "`lensmith studio` takes them as they are, to be answered there"
    )
