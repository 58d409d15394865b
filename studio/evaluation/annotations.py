"""What somebody says about a row while looking at answers, kept beside the dataset.

datasets/NAME/annotations.jsonl: one JSON object a line, of which the last one for a row counts.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from studio.errors import StudioError

Verdict = Literal["wrong_answer", "bad_row", "hard", "none"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
FILE = "annotations.jsonl"


@dataclass(frozen=True)
class Annotation:
    """One row's. row: its place in the split, from 0; at: seconds since the epoch.

    verdict: "wrong_answer", the data's answer should become `answer`; "bad_row", leave the row out; "hard", right, but
    more rows like it are wanted; "none", taken back. label: what the data says; predict: what the model answered.
    """

    version: int
    split: str
    row: int
    verdict: Verdict
    answer: str
    note: str
    prompt: str
    label: str
    predict: str
    evaluation: str
    at: float


def check_annotation(annotation: Annotation) -> None:
    """Raises StudioError for one that says nothing."""
    if annotation.verdict not in VERDICTS:
        raise StudioError("errors.parameters", status=422, name="verdict")
    if annotation.verdict == "wrong_answer" and not annotation.answer.strip():
        raise StudioError("evaluate.no_answer", status=422)


def annotate(dataset: Path, annotation: Annotation) -> None:
    """Appends a line. Raises StudioError."""
    line = json.dumps(asdict(annotation), ensure_ascii=False) + "\n"
    try:
        descriptor = os.open(dataset / FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode("utf-8", "surrogatepass"))  # one write: lines of two tabs do not mix
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StudioError("errors.disk", status=507, path=dataset / FILE, reason=error.strerror) from None


def read_annotations(dataset: Path) -> dict[tuple[int, str, int], Annotation]:
    """The annotations that count, by (version, split, row); those that were taken back are left out."""
    found: dict[tuple[int, str, int], Annotation] = {}
    try:
        lines = (dataset / FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    for line in lines:
        try:
            values: dict[str, Any] = json.loads(line)
            annotation = Annotation(**values)
        except (ValueError, TypeError):  # a line that was cut by a full disk
            continue
        found[annotation.version, annotation.split, annotation.row] = annotation
    return {key: annotation for key, annotation in found.items() if annotation.verdict != "none"}
