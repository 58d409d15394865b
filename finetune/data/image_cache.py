"""Images that are no files of the dataset's own, downloaded or unpacked, kept in ~/.cache/lensmith/images."""

from __future__ import annotations

import os
from pathlib import Path

from modelfiles.folder.atomic_write import write_atomically


def cache_root() -> Path:
    """The folder of all that can be made again."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root.absolute() / "lensmith"


def cached_path(name: str) -> Path:
    """Where the image of this name is, or would be."""
    return cache_root() / "images" / name


def cache_image(name: str, data: bytes) -> Path:
    """Writes an image under a name that stands for its content; other processes see all of it or nothing."""
    path = cached_path(name)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data, durable=False)  # a lost one is made again
    return path
