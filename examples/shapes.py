"""Pictures of coloured shapes and captions for them: what the small base model is pre-trained on.

`sample_scene` draws a random scene, `render` paints it, the `*_turn` functions make one (prompt, answer) pair about it.
Everything is a pure function of the `random.Random` handed in.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "black": (0, 0, 0),
    "gray": (128, 128, 128),
    "teal": (0, 128, 128),
    "brown": (165, 42, 42),
    "orange": (255, 150, 20),
    "purple": (130, 30, 170),
    "pink": (255, 130, 190),
    "white": (255, 255, 255),
}
SHAPES = ("circle", "rectangle", "triangle", "star", "cross")
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "center", "right")
SIZES = ("small", "medium", "large")

CAPTION_PROMPTS = (
    "Describe the picture.",
    "Describe the image.",
    "Write a caption.",
    "Caption this picture.",
    "Give a short caption.",
    "Tell me about the picture.",
    "Describe this image in one sentence.",
)
TAG_PROMPTS = ("List tags for the picture.", "Tags, please.", "Give keywords for the image.")
INVENTORY_PROMPTS = ("Describe the picture and say what is missing.", "Write a caption with what it does not show.")
DETAIL_PROMPTS = ("Describe the picture in detail.", "Write a detailed caption.")
PAIR_PROMPTS = ("Describe each picture.", "Caption the two images.", "Write a caption for both.")
SYSTEM_PROMPTS = ("You are a helpful assistant.", "You describe pictures.", "Answer in plain words.")
ECHO_PROMPTS = ("Say {word}.", "Repeat after me: {word}", "Please write the word {word}.")
# Everyday English, so that the tokenizer has whole words for it and the model has met them.
COMMON_WORDS = tuple(
    """
    a about above after all also an and any are as at be because before below between both but by can color
    colour could day did do does down each every few find first for from give good great has have he her here
    him his how i if in into is it its just know large last left like little long look made make many may me
    more most much my name new no not now object of old on one only or other our out over part people place
    present right said same see shape she show side small so some something such take than that the their them
    then there these they thing think this three time to two under up us use very want was way we well were what
    when where which while who why will with without word work would yes you your contain contains image picture
    photo hello please thanks number text answer question
    """.split()  # noqa: SIM905
)
ECHO_WORDS = (*COLOURS, *SHAPES, *SIZES, *ROWS, *COLUMNS, *COMMON_WORDS)


@dataclass(frozen=True)
class Shape:
    """One shape; x, y and radius are shares of the picture's side (0 to 1)."""

    kind: str
    colour: str
    x: float
    y: float
    radius: float

    @property
    def place(self) -> str:
        row, column = ROWS[min(2, int(self.y * 3))], COLUMNS[min(2, int(self.x * 3))]
        return "center" if (row, column) == ("middle", "center") else f"{row} {column}"

    @property
    def size(self) -> str:
        return SIZES[0] if self.radius < 0.12 else SIZES[1] if self.radius < 0.2 else SIZES[2]

    @property
    def phrase(self) -> str:
        return f"{self.colour} {self.kind}"


@dataclass(frozen=True)
class Scene:
    shapes: tuple[Shape, ...]
    background: tuple[int, int, int]


def sample_scene(rng: random.Random, max_shapes: int) -> Scene:
    """One scene of 1 to `max_shapes` shapes that hardly overlap, on a light (or, sometimes, a dark) background."""
    dark = rng.random() < 0.1
    low, high = (20, 70) if dark else (225, 255)
    background = (rng.randint(low, high), rng.randint(low, high), rng.randint(low, high))
    hidden = "black" if dark else "white"  # a shape must differ from its background
    colours = [name for name in COLOURS if name != hidden]
    shapes: list[Shape] = []
    for _ in range(rng.randint(1, max_shapes)):
        radius = rng.uniform(0.07, 0.26 if max_shapes == 1 else 0.18)
        for _attempt in range(20):
            x, y = rng.uniform(radius, 1 - radius), rng.uniform(radius, 1 - radius)
            if all(math.hypot(x - s.x, y - s.y) > radius + s.radius for s in shapes):
                shapes.append(Shape(rng.choice(SHAPES), rng.choice(colours), x, y, radius))
                break
    return Scene(tuple(shapes), background)


def render(scene: Scene, side: int, rng: random.Random) -> Image.Image:
    """The scene as an RGB picture of side x side pixels; colours vary a little around their names' values."""
    picture = Image.new("RGB", (side, side), scene.background)
    draw = ImageDraw.Draw(picture)
    for shape in scene.shapes:
        base = COLOURS[shape.colour]
        fill = tuple(max(0, min(255, channel + rng.randint(-14, 14))) for channel in base)
        x, y, r = shape.x * side, shape.y * side, shape.radius * side
        if shape.kind == "circle":
            draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)
        elif shape.kind == "rectangle":
            w, h = rng.uniform(0.5, 1.0) * r, rng.uniform(0.5, 1.0) * r
            draw.rectangle((x - w, y - h, x + w, y + h), fill=fill)
        elif shape.kind == "triangle":
            draw.polygon(_ring(x, y, r, 3, -90 if rng.random() < 0.8 else rng.uniform(0, 360)), fill=fill)
        elif shape.kind == "star":
            outer, inner = _ring(x, y, r, 5, -90), _ring(x, y, 0.42 * r, 5, -54)
            draw.polygon([point for pair in zip(outer, inner, strict=True) for point in pair], fill=fill)
        else:
            arm = r * 0.3
            draw.rectangle((x - r, y - arm, x + r, y + arm), fill=fill)
            draw.rectangle((x - arm, y - r, x + arm, y + r), fill=fill)
    return picture


def _ring(x: float, y: float, radius: float, corners: int, start_degrees: float) -> list[tuple[float, float]]:
    angles = [math.radians(start_degrees + 360 * k / corners) for k in range(corners)]
    return [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles]


def caption(scene: Scene) -> str:
    return " and ".join(f"a {shape.phrase}" for shape in scene.shapes)


def picture_turn(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """One (prompt, answer) pair about a picture: a caption, tags, a detailed caption, or what is missing."""
    style = rng.random()
    if style < 0.35:
        return rng.choice(CAPTION_PROMPTS), caption(scene).capitalize() + "."
    if style < 0.60:
        words = [(s.colour, s.kind) if rng.random() < 0.5 else (s.kind, s.colour) for s in scene.shapes]
        return rng.choice(TAG_PROMPTS), ", ".join(word for pair in words for word in pair)
    if style < 0.80:
        parts = [f"a {s.size} {s.phrase} at the {s.place}" for s in scene.shapes]
        return rng.choice(DETAIL_PROMPTS), " and ".join(parts).capitalize() + "."
    kinds, colours = {s.kind for s in scene.shapes}, {s.colour for s in scene.shapes}
    missing_kind = rng.choice([kind for kind in SHAPES if kind not in kinds])
    missing_colour = rng.choice([colour for colour in COLOURS if colour not in colours])
    return rng.choice(INVENTORY_PROMPTS), (
        f"{caption(scene).capitalize()}. "
        f"The picture does not contain a {missing_kind}, and nothing is {missing_colour}."
    )


def pair_turn(first: Scene, second: Scene, rng: random.Random) -> tuple[str, str]:
    """One (prompt, answer) pair about two pictures, in their order."""
    return rng.choice(PAIR_PROMPTS), f"First {caption(first)}. Second {caption(second)}."


def echo_turn(rng: random.Random) -> tuple[str, str]:
    """One text-only pair: repeat a word."""
    word = rng.choice(ECHO_WORDS)
    return rng.choice(ECHO_PROMPTS).format(word=word), word
