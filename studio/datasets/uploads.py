"""Files that come from the browser: streamed to the disk below the dataset's folder, whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

from anyio import to_thread

from modelfiles.folder.atomic_write import PARTIAL
from studio.errors import StudioError
from studio.workspace.names import path_inside

RESERVE = 512 * 2**20  # bytes of the disk that stay free
FLUSH_BYTES = 4 * 2**20  # received before they are written: what one upload holds in memory


async def receive(folder: Path, name: str, chunks: AsyncIterator[bytes], size: int | None) -> Path:
    """Write an upload to `folder`/`name`, which it replaces when all of it is there.

    size: what the browser says it has, if it does. Raises StudioError for a bad name, a full disk and an upload that
    broke off; then nothing is left of it.
    """
    path = path_inside(folder, name)
    check_space(folder, size or 0)
    partial = path.parent / f".{uuid.uuid4().hex}{PARTIAL}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise StudioError("data.error_is_folder", status=409, path=name)
        received = await _write(partial, chunks)
        if size is not None and received != size:
            raise StudioError("data.error_cut_off", path=name, received=received, size=size)
        os.replace(partial, path)
    except (FileExistsError, NotADirectoryError):
        raise StudioError("data.error_is_file", status=409, path=name) from None
    except OSError as error:
        raise disk_error(error, name) from None
    finally:
        partial.unlink(missing_ok=True)
    return path


async def _write(path: Path, chunks: AsyncIterator[bytes]) -> int:
    """How many bytes were written; the event loop is never blocked by the disk."""
    received = 0
    buffer = bytearray()
    with path.open("wb", buffering=0) as file:
        async for chunk in chunks:
            buffer += chunk
            received += len(chunk)
            if len(buffer) >= FLUSH_BYTES:
                await to_thread.run_sync(_write_all, file.fileno(), bytes(buffer))
                buffer.clear()
        await to_thread.run_sync(_write_all, file.fileno(), bytes(buffer))
    return received


def _write_all(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def check_space(folder: Path, needed: int) -> None:
    """Raises StudioError (507) if so many bytes do not fit the disk."""
    free = shutil.disk_usage(folder).free - RESERVE
    if needed > free:
        raise StudioError("data.error_no_space", status=507, needed=megabytes(needed), free=megabytes(max(0, free)))


def disk_error(error: OSError, name: str) -> StudioError:
    """What a page says of a file that could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StudioError("data.error_disk_full", status=507, path=name)
    return StudioError("data.error_write", status=507, path=name, reason=error.strerror or str(error))


def megabytes(size: float) -> str:
    """A size for people: "1,234 MB"."""
    return f"{size / 1e6:,.0f} MB" if size >= 1e6 else f"{size / 1e6:.2f} MB"
