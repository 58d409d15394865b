"""Versions of a dataset: written once, never changed; changes gather in a draft that becomes the next version."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune.data.formats import Row
from finetune.errors import FinetuneError
from finetune.preflight.starter import PIXELS
from finetune.preflight.without_model import assumed_limits, estimate_tokens
from finetune.recipe.load import make_recipe
from modelfiles.folder.atomic_write import new_folder
from studio.datasets.finding import INFO, TRAIN, VALIDATION
from studio.datasets.index import IndexedRow, RowIndex
from studio.datasets.records import is_editable, picture_names, raw_of, read_record, to_record
from studio.datasets.store import ROWS, VERSION, Dataset, Version, write_json
from studio.datasets.thumbnails import inspect_picture
from studio.datasets.uploads import disk_error
from studio.errors import StudioError

NO_ANSWER = "data.problem_no_answer"  # a problem that is a key of the locale files


def write_version(dataset: Dataset, folder: Path, note: str, imported: int | None) -> None:
    """Complete a folder that has the index of rows: the files that `lensmith train` reads, and the version's facts.

    imported: None if this very version is an import's. Raises OSError and sqlite3.Error.
    """
    index = RowIndex(folder / ROWS)
    lines = {TRAIN: 0, VALIDATION: 0}
    numbers: list[tuple[int | None, int]] = []
    with (
        (folder / f"{TRAIN}.jsonl").open("w", encoding="utf-8") as train,
        (folder / f"{VALIDATION}.jsonl").open("w", encoding="utf-8") as validation,
    ):
        files = {TRAIN: train, VALIDATION: validation}
        for row in index.all_rows():
            if row.problem is not None or row.left_out:
                numbers.append((None, row.number))
                continue
            files[row.split].write(json.dumps(row.record, ensure_ascii=False) + "\n")
            lines[row.split] += 1
            numbers.append((lines[row.split], row.number))
    with index.open(write=True) as connection:
        connection.executemany("UPDATE rows SET line = ? WHERE number = ?", numbers)
    info = {
        split: {"file_name": f"{split}.jsonl", "formatting": "openai"} for split in (TRAIN, VALIDATION) if lines[split]
    }
    if not lines[VALIDATION]:
        (folder / f"{VALIDATION}.jsonl").unlink()
    (folder / INFO).write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    about = {"created_at": time.time(), "note": note, "counts": index.counts(), "rows": lines}
    write_json(folder / VERSION, about | {"imported": next_number(dataset) if imported is None else imported})


def next_number(dataset: Dataset) -> int:
    return max((version.number for version in dataset.versions()), default=0) + 1


def current_index(dataset: Dataset, number: int | None = None) -> RowIndex:
    """The rows that the page shows: a version's; without a number the draft's, if there is one, else the newest."""
    if number is None and dataset.draft_path.exists():
        return RowIndex(dataset.draft_path)
    return dataset.version(number).index


def draft_of(dataset: Dataset) -> RowIndex:
    """The index to change, made from the newest version at the first change. Raises StudioError."""
    with dataset.lock():
        if not dataset.draft_path.exists():
            newest = dataset.version()
            partial = dataset.folder / f".{uuid.uuid4().hex}.partial"
            try:
                shutil.copyfile(newest.folder / ROWS, partial)
                with RowIndex(partial).open(write=True) as connection:
                    connection.execute("UPDATE rows SET changed = 0 WHERE changed")
                os.replace(partial, dataset.draft_path)
            except OSError as error:
                raise disk_error(error, dataset.draft_path.name) from None
            finally:
                partial.unlink(missing_ok=True)
        return RowIndex(dataset.draft_path)


def discard_draft(dataset: Dataset) -> None:
    """Forget the changes that are not saved."""
    with dataset.lock(), suppress(FileNotFoundError):
        dataset.draft_path.unlink()


def save_draft(dataset: Dataset, note: str = "") -> Version:
    """Make the changes the next version; those before stay as they are. Raises StudioError."""
    with dataset.lock():
        if not dataset.draft_path.exists():
            raise StudioError("data.error_no_changes", status=409)
        number, base = next_number(dataset), dataset.version()
        with disk_sentences(dataset.name), new_folder(dataset.versions_folder / str(number)) as folder:
            shutil.copyfile(dataset.draft_path, folder / ROWS)
            write_version(dataset, folder, note.strip()[:500], base.imported)
        dataset.draft_path.unlink()
    return dataset.version(number)


@contextmanager
def disk_sentences(name: str) -> Iterator[None]:
    """A full disk in the block becomes a StudioError."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, name) from None
    except sqlite3.OperationalError as error:
        raise StudioError("data.error_write", status=507, path=name, reason=str(error)) from None


def leave_out(dataset: Dataset, numbers: Sequence[int], value: bool = True) -> None:
    """Keep rows from being trained on, or take them back."""
    with disk_sentences(dataset.name):
        draft_of(dataset).set(numbers, left_out=int(value))


def flag(dataset: Dataset, numbers: Sequence[int], value: bool = True) -> None:
    """Mark rows to be found again."""
    with disk_sentences(dataset.name):
        draft_of(dataset).set(numbers, flagged=int(value))


def edit(dataset: Dataset, number: int, record: Any) -> IndexedRow:
    """Put another record in a row's place. Raises StudioError for one that cannot be read; then nothing changes."""
    index = draft_of(dataset)
    row = index.get(number)
    if row is None:
        raise StudioError("data.error_no_row", status=404, number=number)
    folder = dataset.version().folder
    raw = raw_of(row.record)
    media = folder / raw["media"] if raw else folder
    try:
        read = read_record(record, media, row.place)
    except FinetuneError as error:
        raise StudioError(error.message, status=422) from None
    pictures = [Path(os.path.normpath(image)) for image in read.images if isinstance(image, Path)]
    known = {os.path.normpath(folder / name) for name in picture_names(row.record)}
    inside = (os.path.normpath(media), str(dataset.files)) if raw else ()
    if len(pictures) < len(read.images) or not all(
        str(picture) in known or any(picture.is_relative_to(root) for root in inside) for picture in pictures
    ):
        raise StudioError("data.error_other_pictures", status=422)  # an edit cannot make the studio show other files
    looked = {picture: inspect_picture(picture, dataset.thumbnails) for picture in pictures}
    problem = next((found.problem for found in looked.values() if found.problem), None) or problem_of(read)
    read = replace(read, images=list(pictures))
    tokens = tokens_of(read, {picture: found.size or (1, 1) for picture, found in looked.items()})
    kept = to_record(read, folder, dataset.folder)
    with disk_sentences(dataset.name):
        names = zip(picture_names(kept), looked.values(), strict=False)
        index.add_pictures((name, *(found.size or (None, None)), found.problem) for name, found in names)
        index.set([number], record=kept, problem=problem, tokens=tokens)
    changed = index.get(number)
    assert changed is not None
    return changed


def edit_texts(dataset: Dataset, number: int, texts: Sequence[str]) -> IndexedRow:
    """Put these texts in the place of the row's turns. Raises StudioError for a row that has not so many turns."""
    row = current_index(dataset).get(number)
    if row is None:
        raise StudioError("data.error_no_row", status=404, number=number)
    if not is_editable(row.record) or len(row.record["messages"]) != len(texts):
        raise StudioError("data.error_other_turns", status=409, number=number)
    turns = [turn | {"content": text} for turn, text in zip(row.record["messages"], texts, strict=True)]
    return edit(dataset, number, row.record | {"messages": turns})


def row_at(dataset: Dataset, version: int, split: str, line: int) -> int:
    """The number, in the newest version too, of the row that is this line (from 1) of a version's file.

    Raises StudioError if the newest version's rows come from another import.
    """
    used = dataset.version(version)
    number = used.index.number_at(split, line)
    if number is None or used.imported != dataset.version().imported:
        raise StudioError("data.error_row_of_other_import", status=409)
    return number


def correct_answer(dataset: Dataset, version: int, split: str, line: int, answer: str) -> IndexedRow:
    """Change the last answer of the row that is this line (from 1) of a version's file. Raises StudioError."""
    number = row_at(dataset, version, split, line)
    row = current_index(dataset).get(number)
    if row is None or not is_editable(row.record):
        raise StudioError("data.error_no_row", status=404, number=number)
    texts = [turn["content"] for turn in row.record["messages"]]
    return edit_texts(dataset, number, [*texts[:-1], answer])


def problem_of(row: Row) -> str | None:
    """Why a row that can be read should not be trained on."""
    for n, message in enumerate(row.messages):
        learnt = message["role"] == "assistant" and n not in row.unlabelled and "tool_calls" not in message
        if learnt and not any(part.get("text", "").strip() for part in message["content"]):
            return NO_ANSWER
    return None


_LIMITS = assumed_limits(make_recipe({"model_name_or_path": "", "image_max_pixels": PIXELS}))


def tokens_of(row: Row, sizes: dict[Path | str, tuple[int, int]]) -> int:
    """About how many tokens a row has, as Qwen3-VL and `lensmith init`'s pixel limit would have it."""
    return estimate_tokens(row, sizes, _LIMITS)


def leave_out_twins(dataset: Dataset) -> int:
    """Leave out all but one picture of each group of twins: validation's where a group has some; how many rows."""
    index = draft_of(dataset)
    kept: dict[int, tuple[bool, list[str]]] = {}
    copies: list[int] = []
    twins = [row for row in index.all_rows() if row.twins is not None and not row.left_out]
    for row in sorted(twins, key=lambda row: (row.split != VALIDATION, row.number)):
        assert row.twins is not None
        held_out, names = kept.setdefault(row.twins, (row.split == VALIDATION, picture_names(row.record)))
        if picture_names(row.record) != names or (held_out and row.split != VALIDATION):
            copies.append(row.number)
    with disk_sentences(dataset.name):
        index.set(copies, left_out=1)
    return len(copies)
