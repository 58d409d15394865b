"""Names that people give to datasets, runs and models, and paths from outside: checked before they touch the disk."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path, PurePosixPath

from studio.errors import StudioError

MAX_NAME = 64  # characters
MAX_PART_BYTES = 255  # of one part of a path, the limit of Linux file systems
# Letters and digits of any script, then dots, dashes and underlines too: safe as a folder, in a URL and in YAML.
NAME = re.compile(r"\w[\w.\-]*")


def check_name(name: str) -> str:
    """The name in Unicode's normal form C. Raises StudioError if it cannot be a folder's name."""
    name = unicodedata.normalize("NFC", name.strip())
    if not NAME.fullmatch(name) or len(name) > MAX_NAME or len(name.encode()) > MAX_PART_BYTES:
        raise StudioError("errors.bad_name", name=name[:MAX_NAME], limit=MAX_NAME)
    return name


def check_relative_path(text: str) -> PurePosixPath:
    """A path of an upload or an archive as parts below a folder. Raises StudioError for any other."""
    path = PurePosixPath(unicodedata.normalize("NFC", text.replace("\\", "/")))
    parts = path.parts
    bad = not parts or path.is_absolute() or ".." in parts or any(len(part.encode()) > MAX_PART_BYTES for part in parts)
    if bad or any(unicodedata.category(letter) in ("Cc", "Cs") for letter in text) or ":" in parts[0]:
        raise StudioError("errors.bad_path", path=text[:200])
    return path


def path_inside(folder: Path, text: str) -> Path:
    """`folder`/`text`, with symbolic links followed. Raises StudioError if that is not inside the folder."""
    path = (folder / check_relative_path(text)).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise StudioError("errors.bad_path", path=text[:200])
    return path
