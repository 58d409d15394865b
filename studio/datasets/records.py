"""Rows as the records that a version's files hold: OpenAI's messages, pictures by path."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from finetune.data.formats import Row, make_row
from finetune.data.layouts import detect
from finetune.data.row_media import IMAGE, VIDEO, Video
from finetune.encoding.boxes import boxes_in
from finetune.errors import FinetuneError
from modelfiles.folder.atomic_write import write_atomically

ORIGINAL_BOXES = "original"  # the box_format with which `objects` are filled in: their numbers stay as they are


def to_record(row: Row, folder: Path, root: Path) -> dict[str, Any]:
    """The row as a record of a file in `folder`: `read_record` gives the same row again.

    root: pictures below it are named relative to `folder`, so that the workspace can be moved; others by their path.
    """

    def named(path: Path | str) -> str:
        absolute = os.path.abspath(path)
        return os.path.relpath(absolute, folder) if Path(absolute).is_relative_to(root) else absolute

    record: dict[str, Any] = {
        "messages": [_turn(message, n in row.unlabelled) for n, message in enumerate(row.messages)],
        "images": [named(image) for image in row.images],
    }
    if row.videos:
        record["videos"] = [
            [named(frame) for frame in video.source] if isinstance(video.source, tuple) else named(video.source)
            for video in row.videos
        ]
    if row.tools:
        record["tools"] = row.tools
    return record


def _turn(message: dict[str, Any], unlabelled: bool) -> dict[str, Any]:
    marks = {"image": IMAGE, "video": VIDEO}
    text = "".join(marks.get(part["type"]) or part["text"] for part in message["content"])
    turn = {"role": message["role"], "content": text}
    if "tool_calls" in message:
        turn["tool_calls"] = message["tool_calls"]
    return turn | ({"loss": False} if unlabelled else {})


def read_record(record: Any, folder: Path, place: str) -> Row:
    """The row of a record in any layout that is told by itself. Raises FinetuneError naming `place`."""
    return make_row(record, replace(detect(record, folder, place), box_format=ORIGINAL_BOXES), place)


def raw_record(record: Any, media: str) -> dict[str, Any]:
    """What is kept of a record that cannot be read. media: the folder of its pictures, relative to the version's."""
    return {"raw": record, "media": media}


def line_at(path: Path, number: int) -> str:
    """A line (from 1) of a text file; empty if it has not so many."""
    with path.open(encoding="utf-8", errors="replace") as file:
        return next(islice(file, number - 1, None), "").rstrip("\n")


def raw_of(record: Any) -> dict[str, Any] | None:
    """{"raw", "media"} of a record that was kept because it cannot be read; None for another."""
    return record if isinstance(record, dict) and record.keys() == {"raw", "media"} else None


def is_editable(record: Any) -> bool:
    """Whether a record has our form, so that its turns can be edited as texts."""
    turns = record.get("messages") if isinstance(record, dict) else None
    return isinstance(turns, list) and all(
        isinstance(turn, dict) and isinstance(turn.get("content"), str) and isinstance(turn.get("role"), str)
        for turn in turns
    )


def picture_names(record: Any) -> list[str]:
    """The pictures of a record of ours; none for one that was kept as it was."""
    images = record.get("images") if isinstance(record, dict) else None
    return [image for image in images if isinstance(image, str)] if isinstance(images, list) else []


def boxes_of(record: Any) -> list[list[float]]:
    """The boxes [x1, y1, x2, y2] and points [x, y] in the texts of a record of our form, each once."""
    if not is_editable(record):
        return []
    found = [box for turn in record["messages"] for box in boxes_in(turn["content"])]
    return [box for n, box in enumerate(found) if box not in found[:n]]


def box_span(boxes: list[list[float]], size: tuple[int, int], box_format: str | None) -> tuple[float, float]:
    """(width, height) that the boxes' numbers count in, for drawing them over a picture of this size.

    Without a box_format: pixels if all boxes lie within the picture, else 0 to 1000; shares of 1 if none is larger.
    """
    if box_format == "relative":
        return (1000, 1000)
    numbers = [number for box in boxes for number in box]
    if box_format is None and numbers and max(numbers) <= 1:
        return (1, 1)
    within = all(x <= size[0] and y <= size[1] for box in boxes for x, y in zip(box[::2], box[1::2], strict=True))
    return size if within or box_format is not None else (1000, 1000)


def with_files(row: Row, folder: Path, allowed: Callable[[Path], bool]) -> Row:
    """The row with files in `folder` in place of pictures that stand in the data as base64.

    allowed: whether a path may be read. Raises FinetuneError naming the row, for a path that may not and for URLs.
    """

    def as_file(image: Path | str) -> Path:
        if isinstance(image, Path):
            if not allowed(image):
                raise FinetuneError(f"{row.source}: the picture {image} is not in the dataset's folder; add it there.")
            return image
        if not image.startswith("data:"):
            raise FinetuneError(f"{row.source}: the picture {image[:80]} is a URL; download it and add the file.")
        try:
            data = base64.b64decode(image.partition(",")[2], validate=True)
        except binascii.Error as error:
            raise FinetuneError(f"{row.source}: a picture's base64 is broken ({error}).") from None
        path = folder / hashlib.sha256(data).hexdigest()
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, data, durable=False)
        return path

    videos = [
        Video(tuple(map(as_file, video.source)) if isinstance(video.source, tuple) else as_file(video.source))
        for video in row.videos
    ]
    return replace(row, images=[as_file(image) for image in row.images], videos=videos)
