"""Pictures for requests, and what became of them at the engine."""

from __future__ import annotations

import base64
import contextlib
import io
import json

import httpx
import psutil
from PIL import Image

from tests.support.gateway.processes import Process
from tests.support.gateway.requests import CHAT


def image_file(format: str, size: tuple[int, int] = (30, 20)) -> bytes:
    out = io.BytesIO()
    Image.effect_noise(size, 90).save(out, format)
    return out.getvalue()


def uri(image: Image.Image, format: str, **options: object) -> str:
    file = io.BytesIO()
    image.save(file, format, **options)
    return f"data:image/{format.lower()};base64," + base64.b64encode(file.getvalue()).decode()


def sent_on(gateway: Process, url: str, **fields: str) -> tuple[Image.Image, str]:
    """The image the engine gets for this one, and its URI."""
    parts = [{"type": "text", "text": "echo"}, {"type": "image_url", "image_url": {"url": url, **fields}}]
    body = {"model": "fake", "messages": [{"role": "user", "content": parts}]}
    answer = httpx.post(gateway.url + CHAT, json=body, timeout=30)
    assert answer.status_code == 200, answer.text
    echoed = json.loads(answer.json()["choices"][0]["message"]["content"])
    seen = echoed["body"]["messages"][0]["content"][1]["image_url"]["url"]
    return Image.open(io.BytesIO(base64.b64decode(seen.split(",", 1)[1]))), seen


def close(image: Image.Image, x: float, y: float, color: tuple[int, int, int]) -> bool:
    """Whether the pixel at these fractions of the sides has about this colour."""
    found = image.convert("RGB").getpixel((int(x * image.width), int(y * image.height)))
    return all(abs(a - b) < 40 for a, b in zip(found, color, strict=True))


def workers(gateway: Process) -> list[psutil.Process]:
    found = psutil.Process(gateway.process.pid).children()
    alive = []
    for child in found:
        with contextlib.suppress(psutil.NoSuchProcess):  # one that ends just now
            if "gateway.media.worker" in " ".join(child.cmdline()):
                alive.append(child)
    return alive
