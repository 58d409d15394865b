"""Images that are no files of the dataset's own, downloaded or unpacked, kept in ~/.cache/lensmith/images."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from finetune.errors import FinetuneError
from modelfiles.folder.atomic_write import write_atomically


def cache_folder(kind: str) -> Path:
    """The folder of one kind of what can be made again; a temporary one where the user's cannot be written.

    In containers there is often no home directory, or one that belongs to root. Raises FinetuneError.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = root.absolute() / "lensmith" / kind
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    if os.access(folder, os.W_OK):
        return folder
    folder = Path(tempfile.gettempdir()) / f"lensmith-{kind}-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise FinetuneError(f"{folder} belongs to another user; name a folder of yours in XDG_CACHE_HOME.")
    return folder


def cached_path(name: str) -> Path:
    """Where the image of this name is, or would be. Raises FinetuneError."""
    return cache_folder("images") / name


def cache_image(name: str, data: bytes) -> Path:
    """Writes an image under a name that stands for its content; other processes see all of it or nothing.

    Raises FinetuneError if the disk refuses.
    """
    path = cached_path(name)
    if not path.exists():
        try:
            write_atomically(path, data, durable=False)  # a lost one is made again
        except OSError as error:
            raise FinetuneError(
                f"{path.parent} cannot hold the images: {error.strerror or error}; make room there, or name another "
                "folder in XDG_CACHE_HOME."
            ) from None
    return path
