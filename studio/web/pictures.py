"""Pictures made small for pages. A picture from outside is decoded here and never sent as it came."""

from __future__ import annotations

import io
from pathlib import Path

from finetune.errors import FinetuneError
from finetune.media.image_files import decode
from studio.errors import StudioError

SIDE = 320  # pixels of the longer side


def small_jpeg(path: Path, side: int = SIDE) -> bytes:
    """The upright picture in at most `side` pixels. Raises StudioError (422) if it cannot be decoded."""
    try:
        image = decode(path)
    except FinetuneError as error:
        raise StudioError(error.message, status=422) from None
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
