"""The page that shows two models' answers to the same rows, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from finetune.data.row_media import media_of
from finetune.reporting.html import render_answer, render_page, render_table, thumbnail

SHOWN_PAIRS = 100


def write_comparison(
    path: Path, ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]], scores: list[list[str]]
) -> Path:
    """A page of both runs' answers with their images, those that differ first.

    ours, theirs: records of generated_predictions.jsonl in the same order; scores: rows of metric, difference, interval
    and p.
    """
    pairs = sorted(zip(ours, theirs, strict=True), key=lambda pair: pair[0]["predict"] == pair[1]["predict"])
    rows = []
    for one, other in pairs[:SHOWN_PAIRS]:
        images = "".join(thumbnail(medium) for medium in media_of(one))
        cells = [images, escape(str(one.get("prompt", ""))), escape(str(one["label"]))]
        cells += [render_answer(record["predict"], record["label"]) for record in (one, other)]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    differing = sum(one["predict"] != other["predict"] for one, other in pairs)
    page = render_page(
        "Answers side by side",
        "<h2>Difference</h2>"
        + render_table(["metric", "this run minus the other", "95 % interval", "p"], scores)
        + f"<h2>Answers</h2><p>{differing} of {len(pairs)} answers differ; {len(rows)} are shown.</p>"
        + "<table><tr><th>image</th><th>question</th><th>label</th><th>this run</th><th>the other</th></tr>"
        + "".join(rows)
        + "</table>",
    )
    path.write_text(page, encoding="utf-8")
    return path
