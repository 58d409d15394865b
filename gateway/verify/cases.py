"""The conversations that are compared: with drawn pictures of many sizes, or with the user's own pictures."""

from __future__ import annotations

import io
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from gateway.bench.request_set import data_uri, file_uri
from modelfiles.folder.model_folder import ModelFolder

QUESTIONS = (
    "Describe the picture.",
    "What color is the shape?",
    "What shape is in the image?",
    "Is there a red shape in the image?",
    "How many shapes are there?",
)
TEXT_ONLY = ("Say hello.", "Name three colors.", "Repeat after me: red circle", "What is a triangle?")
COLOURS = ("red", "green", "blue", "yellow", "black", "gray", "teal", "brown", "orange", "purple")
# Largest side that is drawn: more would only make the answers slower.
MAX_SIDE = 1024


@dataclass(frozen=True)
class Case:
    """One conversation. `shrunk`: its picture is above the model's pixel limit; engines may shrink it differently."""

    name: str
    messages: list[dict[str, Any]]
    shrunk: bool = False


def cases(folder: ModelFolder, count: int, questions: tuple[str, ...], files: tuple[Path, ...] = ()) -> list[Case]:
    """`count` conversations with pictures, the same every time, and a few without. Raises OSError for `files`."""
    made = [Case(f"text {number + 1}", [user(question)]) for number, question in enumerate(TEXT_ONLY)]
    for number in range(count):
        rng = random.Random(number)
        question = (questions or QUESTIONS)[number % len(questions or QUESTIONS)]
        if files:
            made.append(Case(files[number % len(files)].name, [user(question, file_uri(files[number % len(files)]))]))
        else:
            made.append(drawn_case(number, question, sizes(folder), rng))
    return made


def drawn_case(number: int, question: str, limits: tuple[int, int, int], rng: random.Random) -> Case:
    min_pixels, max_pixels, shrink_pixels = limits
    name, picture = f"picture {number + 1}", draw(random_size(min_pixels, max_pixels, rng), rng)
    kind = number % 10
    if kind == 1:
        return Case(f"{name}, system prompt", [{"role": "system", "content": "Be brief."}, user(question, picture)])
    if kind == 3:
        return Case(
            f"{name} and another", [user(question, picture, draw(random_size(min_pixels, max_pixels, rng), rng))]
        )
    if kind == 5:
        said = {"role": "assistant", "content": "A picture."}
        return Case(f"{name}, second turn", [user("What is this?", picture), said, user(question)])
    if kind == 7 and shrink_pixels:
        side = math.isqrt(shrink_pixels)
        wide = draw((side + side // 2, side), rng)
        return Case(f"{name}, too large", [user(question, wide)], shrunk=True)
    return Case(name, [user(question, picture)])


def sizes(folder: ModelFolder) -> tuple[int, int, int]:
    """(min_pixels, max_pixels) of the pictures to draw, and the model's own max_pixels, 0 if too many to draw."""
    min_pixels, max_pixels = folder.image_pixel_limits
    within = min(max_pixels or MAX_SIDE**2, MAX_SIDE**2)
    return (
        max(min_pixels, 64 * 64),
        max(within, min_pixels, 64 * 64),
        max_pixels if 0 < max_pixels <= 4 * MAX_SIDE**2 else 0,
    )


def random_size(min_pixels: int, max_pixels: int, rng: random.Random) -> tuple[int, int]:
    """Width and height of `min_pixels` to `max_pixels` pixels, sides within 1:2."""
    pixels, ratio = rng.uniform(min_pixels, max_pixels), rng.uniform(0.5, 2.0)
    width = max(32, round(math.sqrt(pixels * ratio)))
    return width, max(32, min(math.ceil(pixels / width), max_pixels // width))


def user(question: str, *pictures: str) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": uri}} for uri in pictures]
    return {"role": "user", "content": [*parts, {"type": "text", "text": question}]}


def draw(size: tuple[int, int], rng: random.Random) -> str:
    """A `data:` URI of a PNG with one to three coloured shapes on a light ground."""
    picture = Image.new("RGB", size, (rng.randint(225, 255), rng.randint(225, 255), rng.randint(225, 255)))
    pen = ImageDraw.Draw(picture)
    for _ in range(rng.randint(1, 3)):
        radius = rng.uniform(0.1, 0.25) * min(size)
        x, y = (rng.uniform(radius, side - radius) for side in size)
        box, colour = (x - radius, y - radius, x + radius, y + radius), rng.choice(COLOURS)
        shape = rng.choice(("circle", "rectangle", "triangle"))
        if shape == "circle":
            pen.ellipse(box, fill=colour)
        elif shape == "rectangle":
            pen.rectangle(box, fill=colour)
        else:
            pen.polygon([(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)], fill=colour)
    file = io.BytesIO()
    picture.save(file, "PNG")
    return data_uri("image/png", file.getvalue())
