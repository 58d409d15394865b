"""Columns that nobody knows by name: shown with examples, mapped by a person, written in a layout that is known."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from finetune.data.layouts import detect
from finetune.data.pictures.folder import PICTURES
from finetune.data.records import read_records
from finetune.data.row_media import IMAGE, one_image
from finetune.errors import FinetuneError
from studio.errors import StudioError

USES = ("question", "answer", "image", "chat", "system")  # what a column can be used for
EXAMPLES = 3
MAX_EXAMPLE = 160  # characters of a value that are shown
NAMES = {
    "question": ("question", "prompt", "query", "instruction", "input", "q", "问题", "提问"),
    "answer": (
        "answer",
        "response",
        "output",
        "caption",
        "text",
        "label",
        "target",
        "completion",
        "a",
        "回答",
        "答案",
        "标签",
    ),
    "system": ("system", "system_prompt"),
}


def is_known(file: Path) -> bool:
    """Whether finetune tells a file's layout by itself; also for one without records. Raises FinetuneError."""
    first = next(read_records(file), None)
    if first is None:
        return True
    try:
        detect(first, file.parent, file.name)
    except FinetuneError:
        return not isinstance(first, dict)
    return True


def examples_of(file: Path) -> dict[str, list[str]]:
    """The columns of a file's first records, each with the first values as texts. Raises FinetuneError."""
    columns: dict[str, list[str]] = {}
    for record in islice(read_records(file), EXAMPLES):
        for name, value in record.items() if isinstance(record, dict) else []:
            columns.setdefault(str(name), []).append(_shown(value))
    return columns


def _shown(value: Any) -> str:
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        return f"({len(value['bytes']):,} bytes)"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= MAX_EXAMPLE else text[:MAX_EXAMPLE] + "…"


def guess(columns: dict[str, list[str]]) -> dict[str, str]:
    """The column that is probably meant for each use, as far as names and values show."""
    found: dict[str, str] = {}
    for name, values in columns.items():
        if any(value.lower().endswith(PICTURES) or value.endswith(" bytes)") for value in values):
            found.setdefault("image", name)
        elif any(value.startswith('[{"') for value in values):
            found.setdefault("chat", name)
    for use, names in NAMES.items():
        match = next((name for name in columns if name.lower() in names and name not in found.values()), None)
        if match is not None and "chat" not in found:
            found[use] = match
    numbers = [name for name, values in columns.items() if all(value.replace(".", "").isdecimal() for value in values)]
    left = [name for name in columns if name not in (*found.values(), *numbers)]
    if "chat" not in found and "answer" not in found and left:
        found["answer"] = left.pop()
        if "question" not in found and left:
            found["question"] = left[0]
    return found


def check_mapping(mapping: dict[str, str]) -> dict[str, str]:
    """The uses that have a column. Raises StudioError if rows cannot be made of them."""
    used = {use: mapping[use] for use in USES if mapping.get(use)}
    if not used.keys() & {"answer", "chat"}:
        raise StudioError("data.error_no_answer_column")
    if len(set(used.values())) < len(used):
        raise StudioError("data.error_column_twice")
    return used


def mapped_records(file: Path, mapping: dict[str, str], question: str) -> Iterator[Any]:
    """The file's records in a known layout. question: what is asked where no column says it. Raises FinetuneError."""
    for record in read_records(file):
        if not isinstance(record, dict):
            yield record
            continue
        images = _images(record.get(mapping.get("image", "")))
        system = {"system": _text(record[mapping["system"]])} if record.get(mapping.get("system", "")) else {}
        if "chat" in mapping:
            chat = record.get(mapping["chat"])
            chat = json.loads(chat) if isinstance(chat, str) and chat.startswith("[") else chat
            yield {"messages": chat, "images": images} | system
            continue
        asked = _text(record.get(mapping["question"])) if "question" in mapping else question
        mark = IMAGE if images and IMAGE not in asked else ""
        yield {
            "query": mark * len(images) + asked,
            "response": _text(record.get(mapping["answer"])),
            "images": images,
        } | system


def _images(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [image for image in map(one_image, values) if image]


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
