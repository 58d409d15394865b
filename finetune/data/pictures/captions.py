"""A picture's caption, in a file of its own beside it."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

from finetune.errors import FinetuneError

SUFFIXES = (".txt", ".caption", ".json")  # the first that is there counts
TEXTS = ("text", "caption")  # fields of a JSON file, as in the records of a data file
MAX_BYTES = 100_000


def find_captions(pictures: list[Path], others: list[Path]) -> dict[Path, Path]:
    """The caption file of each picture that has one among the other files: cat.txt or cat.jpg.txt for cat.jpg."""
    files: dict[tuple[Path, str], Path] = {(path.with_suffix(""), path.suffix.lower()): path for path in others}
    found: dict[Path, Path] = {}
    for picture in pictures:
        keys = ((name, suffix) for suffix in SUFFIXES for name in (picture.with_suffix(""), picture))
        file = next((files[key] for key in keys if key in files), None)
        if file is not None:
            found[picture] = file
    return found


def read_caption(path: Path) -> dict[str, Any]:
    """A record's fields: the caption as `output`, with the other fields of a JSON file; without one, the file's object.

    Raises FinetuneError.
    """
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise FinetuneError(f"{path.name} has over {MAX_BYTES:,} bytes, which is no caption.")
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # as Windows' Notepad writes "Unicode"
    try:
        text = data.decode("utf-16" if utf16 else "utf-8-sig").strip()
    except UnicodeDecodeError:
        raise FinetuneError(f"{path.name} is not UTF-8 text; save it as UTF-8 (iconv -t utf-8).") from None
    if path.suffix.lower() != ".json":
        return {"output": text}
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FinetuneError(f"{path.name} is not JSON: {error}.") from None
    if not isinstance(record, dict):
        raise FinetuneError(f"{path.name} must hold one object, as it lies beside a picture of its name.")
    name = next((name for name in TEXTS if isinstance(record.get(name), str)), None)
    if name is None:
        return record
    others = {key: value for key, value in record.items() if key not in TEXTS}
    return others | {"output": record[name].strip()}
