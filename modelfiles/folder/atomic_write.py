"""Writes a file, or a folder, so that readers see the old content or the new content, never a part of it."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

PARTIAL = ".partial"  # how the name ends of a folder that is still being written; it begins with a dot


def write_atomically(path: Path, data: bytes, *, mode: int = 0o644, durable: bool = True) -> None:
    """Write `data` to a temporary file beside `path`, then rename it to `path`. As `new_file`, in one call."""
    with new_file(path, mode=mode, durable=durable) as file:
        file.write(data)


@contextmanager
def new_file(path: Path, *, mode: int = 0o644, durable: bool = True) -> Iterator[BinaryIO]:
    """A temporary file beside `path`, which is renamed to `path` when the block ends.

    mode: the file's permissions, from the moment it exists. durable: whether the data must survive a crash of the
    machine after the block; it costs a flush to the disk. Raises OSError and leaves no temporary file behind.
    """
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    if durable:  # the rename is in the directory, which must reach the disk too
        flush(path.parent)


@contextmanager
def new_folder(target: Path, *, durable: bool = False) -> Iterator[Path]:
    """An empty folder beside `target`, which takes its place, and that of all it holds, when the block ends.

    If the block raises, the new folder is removed and `target` stays as it was. durable: the files in it must survive
    a crash of the machine after this call. Raises OSError.
    """
    partial = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}{PARTIAL}"
    partial.mkdir(parents=True)
    try:
        yield partial
        if durable:
            for path in (*partial.iterdir(), partial):
                flush(path)
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
        if durable:
            flush(target.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def flush(path: Path) -> None:
    """Bring a file, or a folder's list of names, to the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
