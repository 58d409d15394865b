"""Pages for people: a training run, and two runs' answers side by side; one HTML file each, nothing to fetch."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from finetune.errors import FinetuneError
from finetune.images import decode
from finetune.predictions import media_of
from finetune.recipe import Recipe
from finetune.row_media import Video
from finetune.samples import Sample
from finetune.videos import first_frame

SHOWN_PAIRS = 100
THUMBNAIL = (160, 160)

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: #222 }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
table { border-collapse: collapse; width: 100% }
td, th { border-bottom: 1px solid #ddd; padding: .35rem .6rem; text-align: left; vertical-align: top }
th { font-weight: 600 } td.number { text-align: right; font-variant-numeric: tabular-nums }
img { max-width: 100% } .right { color: #116329 } .wrong { color: #a40e26 }
pre { background: #f6f8fa; padding: .8rem; overflow-x: auto }
"""


def write_training_report(folder: Path, recipe: Recipe, result: dict[str, Any], samples: Sequence[Sample] = ()) -> Path:
    """report.html of a finished run: its curve, answers before and after, results, and its recipe's own keys."""
    plot = folder / "training_loss.png"
    curve = ""
    if plot.is_file():
        curve = f'<h2>Loss</h2><img alt="Loss by step" src="{_data_uri(plot.read_bytes(), "image/png")}">'
    chosen = recipe.model_dump(exclude_defaults=True)
    rows = "".join(
        f"<tr><td>{''.join(map(_thumbnail, sample.images))}</td><td>{escape(sample.question)}</td>"
        f"<td>{escape(sample.label)}</td><td>{_answer(sample.before, sample.label)}</td>"
        f"<td>{_answer(sample.after, sample.label)}</td></tr>"
        for sample in samples
    )
    answers = (
        "<h2>Answers before and after</h2><table><tr><th>images</th><th>question</th><th>label</th><th>before</th>"
        f"<th>after</th></tr>{rows}</table>"
    )
    page = _page(
        f"Training of {folder.name}",
        curve
        + (answers if samples else "")
        + "<h2>Result</h2>"
        + _table(["", ""], [[key.replace("_", " "), _number(value)] for key, value in result.items()])
        + "<h2>Recipe</h2>"
        + _table(["key", "value"], [[key, str(value)] for key, value in chosen.items()]),
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


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
        images = "".join(_thumbnail(medium) for medium in media_of(one))
        cells = [images, escape(str(one.get("prompt", ""))), escape(str(one["label"]))]
        cells += [_answer(record["predict"], record["label"]) for record in (one, other)]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    differing = sum(one["predict"] != other["predict"] for one, other in pairs)
    page = _page(
        "Answers side by side",
        "<h2>Difference</h2>"
        + _table(["metric", "this run minus the other", "95 % interval", "p"], scores)
        + f"<h2>Answers</h2><p>{differing} of {len(pairs)} answers differ; {len(rows)} are shown.</p>"
        + "<table><tr><th>image</th><th>question</th><th>label</th><th>this run</th><th>the other</th></tr>"
        + "".join(rows)
        + "</table>",
    )
    path.write_text(page, encoding="utf-8")
    return path


def _page(title: str, body: str) -> str:
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head><body><h1>{escape(title)}</h1>{body}</body></html>\n"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{lines}</table>"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "none" if value is None else str(value)


def _answer(text: str, label: str) -> str:
    right = text.strip().casefold() == label.strip().casefold()
    return f'<span class="{"right" if right else "wrong"}">{escape(text)}</span>'


def _thumbnail(medium: Path | str | Video) -> str:
    """An image, or a video's first frame, as an <img>."""
    file = medium.files[0] if isinstance(medium, Video) else medium
    name = file.name if isinstance(file, Path) else "image"
    try:
        image = first_frame(medium) if isinstance(medium, Video) else decode(medium)
    except FinetuneError:
        return escape(f"({name} is gone)")
    image.thumbnail(THUMBNAIL)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f'<img alt="{escape(name)}" src="{_data_uri(buffer.getvalue(), "image/png")}">'


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
