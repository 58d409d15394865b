"""Small pictures for the page, made once and kept on the disk."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

from finetune.errors import FinetuneError
from finetune.media.image_files import image_size, thumbnail
from modelfiles.folder.atomic_write import write_atomically

SIDE, LARGE_SIDE = 320, 1600  # pixels of the longer side
QUALITY = 80


@dataclass(frozen=True)
class Picture:
    """What there is to say of a picture file. size: (width, height), None if it cannot be read; problem: why."""

    size: tuple[int, int] | None
    problem: str | None = None


def inspect_picture(path: Path, cache: Path) -> Picture:
    """Reads all of a picture, so that a broken one is found, and keeps its thumbnail in the folder `cache`."""
    try:
        size = image_size(path)
        make_thumbnail(path, cache, SIDE)
    except ValueError as error:
        return Picture(None, f"The picture {path.name}: {error}.")
    except FinetuneError as error:
        return Picture(None, error.message.replace(str(path), path.name))
    except OSError as error:
        return Picture(None, f"The picture {path.name} cannot be read: {error.strerror}.")
    return Picture(size)


def make_thumbnail(path: Path, cache: Path, side: int) -> bytes:
    """The picture as WebP, no side longer than `side`; the small ones are kept. Raises FinetuneError and OSError."""
    kept = cache / _key(path) if side == SIDE else None
    if kept is not None and kept.is_file():
        return kept.read_bytes()
    buffer = io.BytesIO()
    thumbnail(path, side).save(buffer, "WEBP", quality=QUALITY, method=2)
    data = buffer.getvalue()
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, data, durable=False)
    return data


def _key(path: Path) -> str:
    """A name that changes when the file does."""
    status = path.stat()
    digest = hashlib.sha256(f"{path.absolute()}\0{status.st_mtime_ns}\0{status.st_size}".encode()).hexdigest()
    return f"{digest[:2]}/{digest[2:34]}.webp"
