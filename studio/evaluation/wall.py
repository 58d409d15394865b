"""The wall of answers: each row with what was expected, what the base and a run answered, and what changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

from finetune.data.row_media import MARKS
from finetune.errors import FinetuneError
from finetune.evaluation.metrics import anls, exact_match
from finetune.evaluation.predictions import PREDICTIONS, read_predictions
from studio.errors import StudioError

Change = Literal["mended", "broken", "both_wrong", "both_right"]
CHANGES: tuple[Change, ...] = get_args(Change)
PAGE = 24  # rows


@dataclass(frozen=True)
class Answered:
    """A row and its two answers.

    index: in the split, from 0; prompt: without the marks of pictures; score: how near the run's answer is, 0 to 1
    (ANLS).
    """

    index: int
    prompt: str
    label: str
    base: str
    tuned: str
    images: tuple[str, ...]
    change: Change
    score: float


@dataclass(frozen=True)
class WallPage:
    """Some rows, how many there are of each of CHANGES, and how many pages the chosen ones make."""

    rows: Sequence[Answered]
    counts: dict[str, int]
    number: int
    pages: int


def wall(folder: Path, base: str, tuned: str, change: str, number: int) -> WallPage:
    """A page of the rows, worst first. change: one of CHANGES, or "" for all. Raises StudioError."""
    rows = answered(folder, base, tuned)
    chosen = [row for row in rows if change in ("", row.change)]
    pages = max(1, -(-len(chosen) // PAGE))
    number = min(max(1, number), pages)
    shown = chosen[(number - 1) * PAGE : number * PAGE]
    found = Counter(row.change for row in rows)
    return WallPage(shown, {change: found[change] for change in CHANGES}, number, pages)


def answered(folder: Path, base: str, tuned: str) -> list[Answered]:
    """Every row that both sides answered, the worst answers of `tuned` first. Raises StudioError."""
    paths = (folder / base / PREDICTIONS, folder / tuned / PREDICTIONS)
    try:
        changed = tuple(path.stat().st_mtime_ns for path in paths)
    except OSError:
        raise StudioError("evaluate.no_answers", status=404) from None
    try:
        return _read(*paths, changed)
    except FinetuneError as error:
        raise StudioError(error.message) from None


@lru_cache(maxsize=4)
def _read(base: Path, tuned: Path, changed: tuple[int, ...]) -> list[Answered]:
    theirs = {_index(record, at): record for at, record in enumerate(read_predictions(base))}
    rows = []
    for at, record in enumerate(read_predictions(tuned)):
        other = theirs.get(_index(record, at))
        if other is not None:
            rows.append(_row(_index(record, at), other, record))
    return sorted(rows, key=lambda row: (row.change in ("both_right", "mended"), row.score, row.index))


def _row(index: int, base: dict[str, Any], tuned: dict[str, Any]) -> Answered:
    label = str(tuned["label"])
    right = exact_match(base["predict"], label) == 1, exact_match(tuned["predict"], label) == 1
    change: Change = "both_right" if all(right) else "broken" if right[0] else "mended" if right[1] else "both_wrong"
    images = tuned.get("images")
    return Answered(
        index=index,
        prompt=MARKS.sub("", str(tuned.get("prompt", ""))).strip(),
        label=label,
        base=str(base["predict"]),
        tuned=str(tuned["predict"]),
        images=tuple(map(str, images)) if isinstance(images, list) else (),
        change=change,
        score=anls(tuned["predict"], label),
    )


def _index(record: dict[str, Any], position: int) -> int:
    index = record.get("index", position)
    return index if isinstance(index, int) else position
