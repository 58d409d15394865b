"""The pages of evaluations: a run's scores and answers, and two runs' answers to the same rows side by side.

Every score is a mean on the scale of 0 to 100.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from finetune.data.row_media import media_of
from finetune.reporting.html import is_right, render_answer, render_answers, render_page, render_table, thumbnail
from modelfiles import counted

SHOWN_PAIRS = 100
SHARES = ("exact_match", "token_f1", "anls")  # metrics that are computed as shares of 1


def hundredths(metric: str, *values: float) -> list[float]:
    """A metric's values on the scale of 0 to 100, which the others have already."""
    return [100 * value if metric in SHARES else value for value in values]


def write_evaluation(path: Path, run: str, records: Sequence[dict[str, Any]], scores: list[list[str]]) -> Path:
    """A page of a run's scores and answers, the wrong ones first.

    records: of generated_predictions.jsonl; scores: rows of metric, mean and interval.
    """
    right = [is_right(record["predict"], record["label"]) for record in records]
    shown = [records[number] for number in _first_false(right)]
    rows = [_cells(record, [record]) for record in shown]
    page = render_page(
        f"Evaluation of {run}",
        "<h2>Scores</h2>"
        + render_table(["metric", "of 100", "95 % interval"], scores)
        + f"<h2>Answers</h2><p>{len(rows)} of {counted(len(records), 'is shown', 'are shown')}, those that differ from "
        + "the label first.</p>"
        + render_answers(["image", "question", "label", "answer"], rows),
    )
    path.write_text(page, encoding="utf-8")
    return path


def _first_false(flags: Sequence[bool]) -> list[int]:
    """The numbers of the rows to show: those whose flag is false first."""
    return sorted(range(len(flags)), key=flags.__getitem__)[:SHOWN_PAIRS]


def _cells(record: dict[str, Any], answered: Sequence[dict[str, Any]]) -> list[str]:
    """A row of the table of answers, as HTML."""
    images = "".join(thumbnail(medium) for medium in media_of(record))
    cells = [images, escape(str(record.get("prompt", ""))), escape(str(record["label"]))]
    return cells + [render_answer(one["predict"], one["label"]) for one in answered]


def write_comparison(
    path: Path,
    ours: Sequence[dict[str, Any]],
    theirs: Sequence[dict[str, Any]],
    scores: list[list[str]],
    names: tuple[str, str] = ("this run", "the other"),
) -> Path:
    """A page of both runs' answers with their images, those that differ first.

    ours, theirs: records of generated_predictions.jsonl in the same order; scores: rows of metric, both means, their
    difference, its interval and p; names: of the runs.
    """
    equal = [one["predict"] == other["predict"] for one, other in zip(ours, theirs, strict=True)]
    rows = [_cells(ours[number], [ours[number], theirs[number]]) for number in _first_false(equal)]
    differing = equal.count(False)
    page = render_page(
        "Answers side by side",
        "<h2>Difference</h2>"
        + render_table(["metric", *names, "difference", "95 % interval", "p"], scores)
        + f"<h2>Answers</h2><p>{differing} of {counted(len(equal), 'answer differs', 'answers differ')}; "
        + f"{counted(len(rows), 'is shown', 'are shown')}.</p>"
        + render_answers(["image", "question", "label", *names], rows),
    )
    path.write_text(page, encoding="utf-8")
    return path
