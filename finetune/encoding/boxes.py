"""Boxes in a row's texts, moved to the coordinates that the model was made for.

Qwen2.5-VL reads and writes pixels of the image as it gets it, after the resize (arXiv:2502.13923, 2.1); Qwen2-VL and
Qwen3-VL read and write 0 to 1000 of each side (arXiv:2409.12191, 2.2; Qwen3-VL's cookbook on 2D grounding).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from finetune.data.formats import Row
from finetune.encoding.chat_encoder import ChatEncoder
from finetune.encoding.encoder import Encoder
from finetune.errors import FinetuneError
from finetune.recipe.schema import Recipe

COORDINATES = {"qwen2_vl": "relative", "qwen2_5_vl": "resized", "qwen3_vl": "relative"}
RELATIVE = 1000  # what a side is divided into
NUMBER = r"-?\d+(?:\.\d+)?"
# [x1, y1, x2, y2]; (x1,y1),(x2,y2), as Qwen2-VL writes it; and the point of "point_2d": [x, y].
BOX = re.compile(
    rf"\[\s*{NUMBER}(?:\s*,\s*{NUMBER}){{3}}\s*\]"
    rf"|\(\s*{NUMBER}\s*,\s*{NUMBER}\s*\)\s*,\s*\(\s*{NUMBER}\s*,\s*{NUMBER}\s*\)"
    rf'|(?<="point_2d":)\s*\[\s*{NUMBER}\s*,\s*{NUMBER}\s*\]'
)


@dataclass(frozen=True)
class Sides:
    """Width and height of a row's image: as it is, and as the model gets it."""

    original: tuple[int, int]
    resized: tuple[int, int]

    def of(self, coordinates: str) -> tuple[int, int]:
        """The (width, height) that coordinates of this kind count in."""
        return (RELATIVE, RELATIVE) if coordinates == "relative" else getattr(self, coordinates)


def place_boxes(rows: Sequence[Row], encoder: Encoder, model_type: str, recipe: Recipe) -> list[Row]:
    """The rows with the boxes in their texts moved from box_format to the model's coordinates, rounded.

    Without a box_format texts stay as they are. Raises FinetuneError naming the row whose boxes cannot be moved.
    """
    return list(PlacedRows(rows, encoder, model_type, recipe))


class PlacedRows(Sequence[Row]):
    """The same of each row when it is asked for."""

    def __init__(self, rows: Sequence[Row], encoder: Encoder, model_type: str, recipe: Recipe) -> None:
        self.rows, self.encoder, self.box_format = rows, encoder, recipe.box_format
        self.wanted = refuse_boxes(encoder, model_type, recipe)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return map(self._placed, self.rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        return self._placed(self.rows[index])

    def _placed(self, row: Row) -> Row:
        if self.box_format is None or self.wanted is None:
            return row
        assert isinstance(self.encoder, ChatEncoder)
        return _place(row, self.encoder, self.box_format, self.wanted)


def refuse_boxes(encoder: Encoder, model_type: str, recipe: Recipe) -> str | None:
    """The coordinates that the model was made for; None without a box_format. Raises FinetuneError if it has none."""
    if recipe.box_format is None:
        return None
    wanted = COORDINATES.get(model_type)
    if wanted is None or not isinstance(encoder, ChatEncoder):
        raise FinetuneError(
            f"box_format: what coordinates {model_type} models were made for is not known; write the boxes in them, "
            "and unset box_format."
        )
    if wanted == "resized" and recipe.cutoff_policy == "shrink":
        raise FinetuneError(
            f"box_format: a {model_type} model's boxes move with the image, so cutoff_policy: shrink cannot resize it "
            "further; use cutoff_policy: drop and a smaller image_max_pixels."
        )
    return wanted


def boxes_in(text: str) -> Iterator[list[float]]:
    """The boxes [x1, y1, x2, y2] and points [x, y] of a text."""
    if "[" not in text and "(" not in text:  # as most texts
        return
    for match in BOX.finditer(text):
        yield [float(number) for number in re.findall(NUMBER, match[0])]


def image_sides(row: Row, encoder: ChatEncoder) -> Sides | None:
    """The sides of a row's images; None if it has none, or several whose boxes would move differently."""
    bank = encoder.bank
    sides = set()
    for image in row.images:
        index = bank.add(image, row.source)
        _, rows, columns = bank.grids[index]
        sides.add(Sides(bank.sizes[index], (columns * bank.limits.patch, rows * bank.limits.patch)))
    return sides.pop() if len(sides) == 1 else None


def _place(row: Row, encoder: ChatEncoder, given: str, wanted: str) -> Row:
    texts = [part["text"] for message in row.messages for part in message["content"] if part["type"] == "text"]
    if not any(BOX.search(text) for text in texts):
        return row
    sides = image_sides(row, encoder)
    if sides is None and given == wanted:
        return row
    if sides is None:
        raise FinetuneError(
            f"{row.source}: it has boxes and {len(row.images)} images of different sizes, so which image a box is in "
            f"is not known; give its boxes as the model reads them ({wanted}) and set box_format: {wanted}."
        )
    move = _mover(row, sides, given, wanted)
    messages = [message | {"content": [_moved(part, move) for part in message["content"]]} for message in row.messages]
    return replace(row, messages=messages)


def _moved(part: dict[str, Any], move: Callable[[re.Match[str]], str]) -> dict[str, Any]:
    return part | {"text": BOX.sub(move, part["text"])} if part["type"] == "text" else part


def _mover(row: Row, sides: Sides, given: str, wanted: str) -> Callable[[re.Match[str]], str]:
    """A function that moves a box's text. It raises FinetuneError for a box that is not within the image."""
    before, after = sides.of(given), sides.of(wanted)

    def move(box: re.Match[str]) -> str:
        axes = iter((0, 1, 0, 1))

        def number(match: re.Match[str]) -> str:
            axis, value = next(axes), float(match[0])
            if not 0 <= value <= before[axis]:
                raise FinetuneError(
                    f"{row.source}: the box {box[0].strip()} is not within {before[0]}x{before[1]}, the image's size "
                    f"with box_format: {given}; mend the box, or set the box_format that the data has."
                )
            return match[0] if given == wanted else str(round(value * after[axis] / before[axis]))

        return re.sub(NUMBER, number, box[0])

    return move
