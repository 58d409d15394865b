"""Archives from outside, unpacked within bounds: names checked, links left out, bytes counted as they are written."""

from __future__ import annotations

import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from finetune.data.pictures.folder import JUNK
from modelfiles.folder.atomic_write import new_folder
from studio.datasets.uploads import RESERVE, disk_error, megabytes
from studio.errors import StudioError
from studio.workspace.names import check_relative_path

ZIP, TAR = (".zip",), (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")  # a bare .tar is a WebDataset shard
MAX_FILES = 2_000_000
MAX_RATIO = 200  # unpacked to packed bytes of a whole archive; texts pack 10 to 1, bombs 1000 to 1
SLACK = 100 * 2**20  # unpacked bytes that are always allowed: a small archive of one black picture is no bomb
CHUNK = 2**20


def is_archive(name: str) -> bool:
    """Whether a file of this name is to be unpacked."""
    return name.lower().endswith(ZIP + TAR)


@dataclass(frozen=True)
class Member:
    """A file in an archive: its checked path and how it is opened."""

    path: Path
    open: Callable[[], AbstractContextManager[IO[bytes]]]


def unpack(archive: Path, target: Path, progress: Callable[[int], None] = lambda files: None) -> int:
    """Unpack an archive into the new folder `target`; how many files there were.

    Raises StudioError for anything that is not a plain, readable archive of a sensible size; then there is no target.
    """
    disk = shutil.disk_usage(archive.parent).free - RESERVE
    limit = min(max(SLACK, MAX_RATIO * archive.stat().st_size), disk)
    files = written = 0
    try:
        with new_folder(target) as folder:
            for member in _members(archive):
                files += 1
                if files > MAX_FILES:
                    raise StudioError("data.error_archive_files", name=archive.name, limit=f"{MAX_FILES:,}")
                path = folder / member.path
                path.parent.mkdir(parents=True, exist_ok=True)
                with member.open() as source, path.open("wb") as file:
                    while chunk := source.read(CHUNK):
                        written += len(chunk)
                        if written > limit:
                            raise _too_large(archive, limit, disk)
                        file.write(chunk)
                if files % 500 == 0:
                    progress(files)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, NotImplementedError) as error:
        raise StudioError("data.error_archive", name=archive.name, reason=str(error)) from None
    except RuntimeError:  # zipfile's for a password
        raise StudioError("data.error_archive_password", name=archive.name) from None
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise StudioError("data.error_archive", name=archive.name, reason="a file and a folder of one name") from None
    except OSError as error:
        raise disk_error(error, archive.name) from None
    if not files:
        raise StudioError("data.error_archive_empty", name=archive.name)
    return files


def _too_large(archive: Path, limit: int, disk: int) -> StudioError:
    if limit == disk:
        return StudioError("data.error_archive_space", status=507, name=archive.name, free=megabytes(max(0, disk)))
    return StudioError("data.error_archive_bomb", name=archive.name, limit=megabytes(limit))


def _members(archive: Path) -> Iterator[Member]:
    """The files of an archive. Raises what zipfile and tarfile raise, and StudioError for a path."""
    if archive.name.lower().endswith(ZIP):
        with zipfile.ZipFile(archive) as zipped:
            for entry in zipped.infolist():
                kind = stat.S_IFMT(entry.external_attr >> 16)
                name = _zip_name(entry)
                if not entry.is_dir() and kind in (0, stat.S_IFREG) and not _is_junk(name):
                    yield Member(_checked(name), lambda entry=entry: zipped.open(entry))  # type: ignore[misc]
        return
    with tarfile.open(archive, "r|*") as shard:
        for info in shard:
            if not info.isfile() or _is_junk(info.name):
                continue
            reader = shard.extractfile(info)
            assert reader is not None
            yield Member(_checked(info.name), lambda reader=reader: reader)  # type: ignore[misc]


def _zip_name(entry: zipfile.ZipInfo) -> str:
    """The path of a file in a zip. Without the mark for UTF-8 it may be so all the same, or GB 18030."""
    if entry.flag_bits & 0x800:
        return entry.filename
    raw = entry.filename.encode("cp437", "replace")  # as which zipfile read it
    for encoding in ("utf-8", "gb18030"):
        try:
            return raw.decode(encoding)
        except UnicodeDecodeError:
            continue
    return entry.filename


def _checked(name: str) -> Path:
    return Path(check_relative_path(name))


def _is_junk(name: str) -> bool:
    return any(part in JUNK or part.startswith("._") for part in name.split("/"))
