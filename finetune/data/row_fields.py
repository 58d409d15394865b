"""Fields of a record that mean something which is not trained here: refused; and ms-swift's `objects`, filled in."""

from __future__ import annotations

import re
from typing import Any

from finetune.data.layouts import Layout
from finetune.errors import FinetuneError
from modelfiles import counted

# Answers of which one is better: what preference training (DPO, KTO) learns from.
PREFERENCES = ("chosen", "rejected", "rejected_response", "rejected_messages", "rejected_images")
AUDIO = ("audio", "audios")
PLACEHOLDER = re.compile("<ref-object>|<bbox>")
FIELDS = ("label", "objects", *PREFERENCES, *AUDIO)


def refuse_fields(record: dict[str, Any], layout: Layout, source: str) -> None:
    """Raises FinetuneError for a field whose meaning would be lost."""
    read = set(layout.columns.values())
    for name in PREFERENCES:
        # A recipe that names one of the answers as its response has said which it wants.
        if name not in read and not read & set(PREFERENCES) and record.get(name):
            raise FinetuneError(
                f"{source}: {name!r} is for preference training: set stage: dpo, which reads 'chosen' and "
                "'rejected'; to train on the better answers alone, set "
                '"columns": {"response": "chosen"} in dataset_info.json.'
            )
    for name in AUDIO:
        if name not in read and record.get(name):
            raise FinetuneError(f"{source}: {name!r} holds audio, which is not supported; leave such rows out.")
    if record.get("label") is False and "label" not in read:
        raise FinetuneError(
            f"{source}: 'label' is false, which marks a bad answer (KTO); supervised training would learn it. "
            "Leave such rows out."
        )


def fill_placeholders(messages: list[dict[str, Any]], record: dict[str, Any], layout: Layout, source: str) -> None:
    """Writes ms-swift's `objects` where the text has <ref-object> and <bbox>. Raises FinetuneError.

    A box is written [x1, y1, x2, y2], in the numbers that the row has; box_format says what they are.
    """
    texts = [part for message in messages for part in message["content"] if part["type"] == "text"]
    marks = [mark for part in texts for mark in PLACEHOLDER.findall(part["text"])]
    objects = record.get("objects")
    if not isinstance(objects, dict) or not objects:
        if marks and "objects" in record:
            raise FinetuneError(f"{source}: the text has {marks[0]}, but 'objects' is {str(objects)[:40]!r}.")
        return
    names, boxes = objects.get("ref") or [], objects.get("bbox") or []
    if isinstance(names, list) and len(names) == 1:  # the one object may be named in question and answer
        names = names * max(1, marks.count("<ref-object>"))
    counts = {"ref": (names, "<ref-object>"), "bbox": (boxes, "<bbox>")}
    for key, (values, mark) in counts.items():
        if not isinstance(values, list) or len(values) != marks.count(mark):
            raise FinetuneError(
                f"{source}: the text has {mark} {counted(marks.count(mark), 'time')}, 'objects' has {len(values)} in "
                f"{key!r}."
            )
    if boxes and layout.box_format is None:
        raise FinetuneError(
            f"{source}: 'objects' holds boxes; set box_format to what their numbers are: original or resized pixels, "
            "or relative (0 to 1000)."
        )
    if boxes and objects.get("bbox_type", "real") != "real":
        kind = objects["bbox_type"]
        raise FinetuneError(f"{source}: the bbox_type {kind!r} is not supported; write boxes in pixels, or 0 to 1000.")
    values = {"<ref-object>": iter(map(str, names)), "<bbox>": iter([_box(box, source) for box in boxes])}
    for part in texts:
        part["text"] = PLACEHOLDER.sub(lambda mark: next(values[mark[0]]), part["text"])


def _box(box: Any, source: str) -> str:
    numbers = isinstance(box, list) and all(isinstance(n, int | float) and not isinstance(n, bool) for n in box)
    if not numbers or len(box) not in (2, 4):
        raise FinetuneError(f"{source}: a box is [x1, y1, x2, y2] and a point [x, y], not {str(box)[:60]}.")
    return f"[{', '.join(f'{number:g}' for number in box)}]"
