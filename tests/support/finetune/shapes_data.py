"""A small dataset of drawn shapes, for the tests of this folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

COLOURS = ["red", "green", "blue", "yellow"]
SIZES = [(64, 64), (96, 64), (70, 120), (200, 180)]


def write_dataset(folder: Path, rows: list[dict[str, Any]], name: str = "shapes", **entry: Any) -> Path:
    """A dataset folder with one ShareGPT file and the images its rows may name."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    for number in range(8):
        image = Image.new("RGB", SIZES[number % 4], "black")
        ImageDraw.Draw(image).rectangle((10, 10, 40, 40), fill=COLOURS[number // 2])
        image.save(images / f"{number}.png")
    (folder / f"{name}.json").write_text(json.dumps(rows))
    info = {"file_name": f"{name}.json", "formatting": "sharegpt"} | entry
    path = folder / "dataset_info.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(known | {name: info}))
    return folder


def ask(question: str, answer: str, *images: int) -> dict[str, Any]:
    """One ShareGPT row of one turn."""
    return {
        "conversations": [
            {"from": "human", "value": "<image>" * len(images) + question},
            {"from": "gpt", "value": answer},
        ],
        "images": [f"images/{number}.png" for number in images],
    }
