"""Pictures that are the same or nearly so are found, across training and validation too."""

from __future__ import annotations

import io
import random

from PIL import Image, ImageDraw
from starlette.testclient import TestClient

from studio.datasets.store import dataset_of
from studio.web.render import Studio
from tests.support.gateway.processes import until
from tests.support.studio.datasets import imported, lines


def scene(seed: int, kind: str = "PNG", scale: float = 1.0, **options: int) -> bytes:
    """A picture that has some content, always the same for a seed."""
    draw = random.Random(seed)
    image = Image.new("RGB", (240, 180), "white")
    canvas = ImageDraw.Draw(image)
    for _ in range(12):
        x, y = draw.randrange(220), draw.randrange(160)
        colour = tuple(draw.choices(range(256), k=3))
        canvas.rectangle((x, y, x + draw.randrange(80), y + draw.randrange(80)), fill=colour)
    image = image.resize((round(240 * scale), round(180 * scale)))
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_copies_and_near_copies_are_found_and_left_out(client: TestClient, studio: Studio) -> None:
    names = [f"{n}.png" for n in range(4)]
    files = {name: scene(n) for n, name in enumerate(names)}
    files |= {"copy.png": scene(0), "smaller.jpg": scene(1, "JPEG", 0.8, quality=70)}
    row = {"question": "<image>What?", "answer": "boxes"}
    train = [row | {"image": name} for name in (*names, "copy.png")]
    files |= {
        "train.jsonl": lines(*train, train[0]),
        "val.jsonl": lines(row | {"image": "smaller.jpg"}, row | {"image": "2.png"}),
    }
    imported(client, files)
    client.post("/data/mine/duplicates")
    until("the search ends", lambda: "hx-refresh" in client.get("/data/mine/twins").headers)
    assert "not saved yet" not in client.get("/data/mine").text
    page = client.get("/data/mine?show=twins").text
    assert "7 rows · page 1" in page
    client.post("/data/mine/twins")
    client.post("/data/mine/save")
    rows = list(dataset_of(studio.workspace, "mine").version().index.all_rows())
    assert [(row.number, row.split) for row in rows if row.left_out] == [(2, "train"), (3, "train"), (5, "train")]
