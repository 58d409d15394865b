"""The folder of Arrow files: what is in it stands for its content, is made once, and is bounded in size.

A file is written under its name with `.partial` behind it, which its writer holds locked; the kernel frees the lock of
a process that is killed. Two processes that need the same file: one writes, the other waits and reads it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import uuid
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO

from finetune.data.image_cache import cache_folder
from finetune.errors import FinetuneError
from modelfiles.folder.atomic_write import PARTIAL

MAX_BYTES = 20 * 2**30  # of all files together; those that were not used for longest go first
SUFFIX = ".arrow"
KIND = "rows"


@cache
def code_version() -> str:
    """A digest of the code that reads rows, so that no file of another version's is taken for its own."""
    digest = hashlib.sha256()
    for module in sorted(Path(__file__).parent.parent.rglob("*.py")):
        digest.update(module.read_bytes())
    return digest.hexdigest()


def kept_file(key: str, write: Callable[[BinaryIO], None]) -> Path:
    """The file of this key; `write` fills it if it is not there. Raises FinetuneError if the disk refuses."""
    final = cache_folder(KIND) / f"{key}{SUFFIX}"
    if not _use(final):
        file = _lock(final.with_name(final.name + PARTIAL))
        with file:
            if not _use(final):  # another process has written it while this one waited for the lock
                _fill(file, write)
                os.replace(file.name, final)
                _prune(final)
            else:
                Path(file.name).unlink(missing_ok=True)
    return final


def scratch_file(write: Callable[[BinaryIO], None], owner: object) -> Path:
    """A file that is there as long as `owner` lives, in this process."""
    file = _lock(cache_folder(KIND) / f"{uuid.uuid4().hex}{PARTIAL}")
    weakref.finalize(owner, _remove, file)  # the lock is held until then
    _fill(file, write)
    return Path(file.name)


def _fill(file: BinaryIO, write: Callable[[BinaryIO], None]) -> None:
    try:
        write(file)
        file.flush()
    except OSError as error:
        _remove(file)
        raise FinetuneError(
            f"{Path(file.name).parent} cannot hold the rows: {error}; make room there, or name another folder "
            "in XDG_CACHE_HOME."
        ) from None
    except BaseException:
        _remove(file)
        raise


def _remove(file: BinaryIO) -> None:
    Path(file.name).unlink(missing_ok=True)
    with suppress(OSError):  # what it still holds may not fit on the disk
        file.close()


def _use(path: Path) -> bool:
    """Whether the file is there; marks it as used now."""
    try:
        os.utime(path)
    except OSError:
        return False
    return True


def _lock(path: Path) -> BinaryIO:
    """The file, empty and locked by this process, once no other holds it."""
    while True:
        file = path.open("ab")
        fcntl.flock(file, fcntl.LOCK_EX)
        # Its last holder may have renamed or removed it while this one waited.
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            file.truncate(0)
            return file
        file.close()


def _prune(newest: Path) -> None:
    """Removes what processes that were killed have left, and the files used longest ago, down to MAX_BYTES."""
    for partial in newest.parent.glob(f"*{PARTIAL}"):
        try:
            with partial.open("ab") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                partial.unlink(missing_ok=True)
        except OSError:  # held by a living process
            continue
    files = sorted((_used(path), path) for path in newest.parent.glob(f"*{SUFFIX}") if path != newest)
    total = sum(size for (_, size), _ in files) + _used(newest)[1]
    for (_, size), path in files:
        if total <= MAX_BYTES:
            break
        path.unlink(missing_ok=True)  # who has it mapped keeps it
        total -= size


def _used(path: Path) -> tuple[float, int]:
    """(when it was last used, its bytes)."""
    try:
        found = path.stat()
    except OSError:
        return 0.0, 0
    return found.st_mtime, found.st_size
