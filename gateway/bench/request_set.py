"""The bodies of a benchmark's requests, which are made before the clock starts."""

from __future__ import annotations

import base64
import io
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from PIL import Image

MEDIA_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
# Common words are one or two tokens in most vocabularies.
WORDS = "the of and to in is it for on are with as at be this from or have by one had not but what".split()  # noqa: SIM905
# Pixels of the drawn noise for each pixel before it is enlarged: at 12, a JPEG has a photo's 1.6 bits a pixel.
GRAIN = 12


@dataclass(frozen=True)
class RequestSet:
    """One kind of request. `images` of each are drawn anew at `image_size`, or taken in turn from `image_files`.

    `prompt_words` random words, if any, come before `prompt`; `extra` fields are added to every body.
    """

    model: str
    prompt: str
    max_tokens: int
    stream: bool = True
    images: int = 0
    image_size: tuple[int, int] = (768, 768)
    image_files: tuple[Path, ...] = ()
    prompt_words: int = 0
    extra: dict[str, Any] = field(default_factory=dict)

    def body(self, seed: int) -> bytes:
        """The request body for this seed; no two seeds give the same drawn image or words. Raises OSError."""
        rng = random.Random(seed)
        content: list[dict[str, Any]] = []
        for k in range(self.images):
            if self.image_files:
                uri = file_uri(self.image_files[(seed * self.images + k) % len(self.image_files)])
            else:
                uri = data_uri("image/jpeg", draw(self.image_size, rng))
            content.append({"type": "image_url", "image_url": {"url": uri}})
        words = [rng.choice(WORDS) for _ in range(self.prompt_words)]
        content.append({"type": "text", "text": " ".join([*words, self.prompt])})
        fields: dict[str, Any] = {
            "model": self.model,
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "stream": self.stream,
        }
        if self.stream:
            fields["stream_options"] = {"include_usage": True}
        return orjson.dumps({**fields, **self.extra, "messages": [{"role": "user", "content": content}]})


def draw(size: tuple[int, int], rng: random.Random) -> bytes:
    """A JPEG file of coloured noise with about a photo's bytes."""
    width, height = (max(1, side // GRAIN) for side in size)
    small = Image.frombytes("RGB", (width, height), rng.randbytes(width * height * 3))
    file = io.BytesIO()
    small.resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=85)
    return file.getvalue()


def file_uri(path: Path) -> str:
    return data_uri(MEDIA_TYPES[path.suffix.lower()], path.read_bytes())


def data_uri(media_type: str, data: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
