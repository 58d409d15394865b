"""What requests must share so that one replica's prefix and image caches serve them all."""

from __future__ import annotations

import hashlib
from typing import Any

TEXT = 4096  # characters of a text that count
SAMPLE = 256  # characters of an image's data at each of three places


def affinity(body: dict[str, Any], images: list[str]) -> bytes:
    """A hash of the prompt's beginning, the same in every process: the system prompt and the first of `images` (URLs).

    Without an image the first message after the system prompt counts, so that a conversation stays where it began.
    """
    hashed = hashlib.blake2b(digest_size=8)
    if images:
        url = images[0]
        middle = len(url) // 2
        # Not all of it, which may be megabytes: photos differ in every part of their compressed data.
        for sample in (str(len(url)), url[:SAMPLE], url[middle : middle + SAMPLE], url[-SAMPLE:]):
            hashed.update(sample.encode())
    for message in body.get("messages") or [{"content": body.get("prompt")}]:
        system = message.get("role") in ("system", "developer")
        if system or not images:
            for text in _texts(message.get("content")):
                hashed.update(text[:TEXT].encode())
        if not system:
            break
    return hashed.digest()


def _texts(content: object) -> list[str]:
    if isinstance(content, str):
        return [content]
    parts = content if isinstance(content, list) else []
    return [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]
