"""What a Modelfile is for."""

from __future__ import annotations

from dataclasses import dataclass

from modelfiles.ollama.versions import NEWEST, Version


@dataclass(frozen=True)
class Context:
    """What the Modelfile is for: an Ollama, a number of images a request, their size (width, height in pixels)."""

    ollama: Version = NEWEST
    images_per_request: int = 8
    image_size: tuple[int, int] = (1024, 1024)
