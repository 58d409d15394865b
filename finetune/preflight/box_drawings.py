"""What `check` shows of boxes: the first rows' drawn on their images, or a warning that they are not moved."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from finetune.data.formats import Row
from finetune.encoding.boxes import COORDINATES, boxes_in, image_sides
from finetune.encoding.chat_encoder import ChatEncoder
from finetune.families.base import Reader
from finetune.media.image_files import decode
from finetune.preflight.report import Report
from finetune.recipe.schema import Recipe
from modelfiles import counted

DRAWN_ROWS = 3


def describe_boxes(rows: Sequence[Row], boxed: Any, reader: Reader, recipe: Recipe, report: Report) -> None:
    """Draws the boxes of the first rows that have some, as the model gets them. Raises FinetuneError.

    boxed: [B], which of the rows have some.
    """
    encoder, coordinates = reader.encoder, COORDINATES.get(reader.folder.model_type)
    if not len(boxed) or coordinates is None or not isinstance(encoder, ChatEncoder):
        return
    first = [rows[number] for number in boxed[:DRAWN_ROWS].tolist()]
    if recipe.box_format is None:
        kind = "pixels of the resized image" if coordinates == "resized" else "0 to 1000"
        report.warn(
            f"{counted(len(boxed), 'row seems', 'rows seem')} to have boxes, such as {_boxes(first[0])[0]} in "
            f"{first[0].source}; they stay as "
            f"they are, and {reader.folder.model_type} reads {kind}: set box_format to what they are in the data."
        )
        return
    folder = Path(tempfile.mkdtemp(prefix="lensmith-check-boxes-"))
    for number, row in enumerate(first, 1):
        sides = image_sides(row, encoder)
        if sides is not None:
            _draw(decode(row.images[0]), _boxes(row), sides.of(coordinates), folder / f"row-{number}.png")
    report.say(
        f"{counted(len(boxed), 'row has', 'rows have')} boxes; those of the first {len(first)} are drawn in {folder}"
    )


def _boxes(row: Row) -> list[list[float]]:
    texts = (part.get("text", "") for message in row.messages for part in message["content"])
    return [box for text in texts for box in boxes_in(text)]


def _draw(image: Image.Image, boxes: Sequence[Sequence[float]], span: tuple[int, int], path: Path) -> None:
    """Writes the image with the boxes, which count in `span` (width, height)."""
    drawing = ImageDraw.Draw(image)
    scale = [image.width / span[0], image.height / span[1]] * 2
    for box in boxes:
        places = [value * factor for value, factor in zip(box, scale, strict=False)]
        if len(places) == 2:
            places = [places[0] - 3, places[1] - 3, places[0] + 3, places[1] + 3]
        x1, x2 = sorted(places[::2])
        y1, y2 = sorted(places[1::2])
        drawing.rectangle((x1, y1, x2, y2), outline="magenta", width=max(2, image.width // 200))
    image.save(path)
