"""Reads single files of a model folder with every check that input from outside needs."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 32_000_000
MAX_TOKENIZER_BYTES = 256_000_000  # the largest published tokenizer.json files have about 35 MB
MAX_TEMPLATE_BYTES = 1_000_000
MAX_JSON_DEPTH = 64


class ModelFolderError(ValueError):
    """The folder cannot be used: one sentence for the user. `rule` is its id in docs/modelfile-rules.md."""

    def __init__(self, message: str, rule: str = "MF101") -> None:
        super().__init__(message)
        self.rule = rule


def regular_file(folder: Path, name: str) -> Path:
    """The real path of `folder`/`name`: a regular file inside `folder`. Raises ModelFolderError.

    Links that stay inside are followed, and so are those of the Hugging Face cache, whose snapshots/REVISION folders
    link to ../../blobs.
    """
    try:
        real = (folder / name).resolve(strict=True)
        mode = real.stat().st_mode
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelFolderError(f"{name} in {folder} cannot be read: {error}.", "MF103") from None
    blobs = folder.parent.parent / "blobs"
    if not real.is_relative_to(folder) and not (folder.parent.name == "snapshots" and real.is_relative_to(blobs)):
        raise ModelFolderError(f"{name} in {folder} is a link that leaves the folder; copy the file in.", "MF103")
    if not stat.S_ISREG(mode):
        raise ModelFolderError(f"{name} in {folder} is not a regular file.", "MF103")
    return real


def read_text(folder: Path, name: str, limit: int = MAX_TEMPLATE_BYTES) -> str:
    """A UTF-8 file of the folder, line ends as they are. Raises ModelFolderError."""
    path = regular_file(folder, name)
    if path.stat().st_size > limit:
        raise ModelFolderError(f"{name} in {folder} has over {limit:,} bytes.", "MF104")
    try:
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelFolderError(f"{name} in {folder} cannot be read as UTF-8: {error}.", "MF104") from None


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object of the folder, not nested deeper than MAX_JSON_DEPTH. Raises ModelFolderError."""
    text = read_text(folder, name, MAX_TOKENIZER_BYTES if name == "tokenizer.json" else MAX_JSON_BYTES)
    if text.startswith("version https://git-lfs"):
        raise ModelFolderError(f"{name} in {folder} is a Git LFS pointer; fetch it with `git lfs pull`.", "MF105")
    try:
        value = json.loads(text)
    except RecursionError:
        raise ModelFolderError(f"{name} in {folder} is nested too deeply.", "MF104") from None
    except ValueError as error:
        raise ModelFolderError(f"{name} in {folder} is not valid JSON: {error}.", "MF104") from None
    if not isinstance(value, dict):
        raise ModelFolderError(f"{name} in {folder} must hold a JSON object.", "MF104")
    if name == "tokenizer.json":
        return value  # hundreds of thousands of entries, and only looked up, never walked or written again
    level: list[Any] = [value]
    for _ in range(MAX_JSON_DEPTH):
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
        level = [child for child in level if isinstance(child, (dict, list))]
        if not level:
            return value
    raise ModelFolderError(f"{name} in {folder} is nested more than {MAX_JSON_DEPTH} deep.", "MF104")


def positive_int(value: object) -> int:
    """The value if it is a positive integer, else 0: configs from outside hold anything."""
    return value if type(value) is int and value > 0 else 0
