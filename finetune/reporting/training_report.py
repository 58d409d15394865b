"""The page of a training run: curves, figures and answers before and after."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from finetune.recipe.schema import Recipe
from finetune.reporting.html import data_uri, format_number, render_answer, render_page, render_table, thumbnail
from finetune.reporting.sample import Sample


def write_training_report(folder: Path, recipe: Recipe, result: dict[str, Any], samples: Sequence[Sample] = ()) -> Path:
    """report.html of a finished run: its curve, answers before and after, results, and its recipe's own keys."""
    curve = ""
    for what in ("Loss", "Rewards"):
        plot = folder / f"training_{what.lower()}.png"
        if plot.is_file():
            curve += f'<h2>{what}</h2><img alt="{what} by step" src="{data_uri(plot.read_bytes(), "image/png")}">'
    chosen = recipe.model_dump(exclude_defaults=True)
    rows = "".join(
        f"<tr><td>{''.join(map(thumbnail, sample.images))}</td><td>{escape(sample.question)}</td>"
        f"<td>{escape(sample.label)}</td><td>{render_answer(sample.before, sample.label)}</td>"
        f"<td>{render_answer(sample.after, sample.label)}</td></tr>"
        for sample in samples
    )
    answers = (
        "<h2>Answers before and after</h2><table><tr><th>images</th><th>question</th><th>label</th><th>before</th>"
        f"<th>after</th></tr>{rows}</table>"
    )
    page = render_page(
        f"Training of {folder.name}",
        curve
        + (answers if samples else "")
        + "<h2>Result</h2>"
        + render_table(["", ""], [[key.replace("_", " "), format_number(value)] for key, value in result.items()])
        + "<h2>Recipe</h2>"
        + render_table(["key", "value"], [[key, str(value)] for key, value in chosen.items()]),
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path
