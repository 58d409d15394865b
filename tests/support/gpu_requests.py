"""Requests of the tests that need a GPU."""

from __future__ import annotations

import base64
import io
from functools import cache
from typing import Any

import openai
from PIL import Image


def picture(size: tuple[int, int] = (224, 224), mode: str = "RGB", format: str = "PNG", kind: int = 0) -> str:
    image = Image.linear_gradient("L").rotate(90 * kind).resize(size).convert("RGB")
    if mode == "I;16":
        image = Image.new("I;16", size)
    elif mode != "RGB":
        image = image.convert(mode)
    file = io.BytesIO()
    image.save(file, format)
    return f"data:image/{format.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def question(*images: str, text: str = "Describe the picture.") -> Any:
    parts = [{"type": "image_url", "image_url": {"url": uri}} for uri in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


@cache
def served_model(client: openai.OpenAI) -> str:
    """The only model, or the first: an engine that somebody else started has a name of its own."""
    return client.models.list().data[0].id


def ask(client: openai.OpenAI, messages: Any, **fields: Any) -> Any:
    return client.chat.completions.create(
        **{"model": served_model(client), "messages": messages, "temperature": 0, "max_tokens": 12, **fields}
    )
