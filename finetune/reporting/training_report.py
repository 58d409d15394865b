"""The page of a training run: what came of it, what to do next, curves, answers before and after, and its recipe."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from finetune.recipe.schema import Recipe
from finetune.reporting.html import (
    data_uri,
    format_number,
    is_right,
    render_answer,
    render_answers,
    render_page,
    render_table,
    thumbnail,
)
from finetune.reporting.sample import Sample

# environment.json's keys, as the page has them.
SURROUNDINGS = {
    "base_model": "base model",
    "base_fingerprint": "sha256 of the base model",
    "data_sha256": "sha256 of the data",
    "device": "device",
    "python": "Python",
}


def write_training_report(folder: Path, recipe: Recipe, result: dict[str, Any], samples: Sequence[Sample] = ()) -> Path:
    """report.html of a run: its results, its curve, answers before and after, its recipe's own keys and environment."""
    body = "<h2>Result</h2>" + render_table([], _facts(result))
    if result.get("interrupted") is not None:
        body += "<p>The run was stopped before its end; the same command goes on from there.</p>"
    else:
        body += f"<h2>Next</h2><pre>{escape(chr(10).join(next_commands(folder, recipe)))}</pre>"
    for what in ("Loss", "Rewards"):
        plot = folder / f"training_{what.lower()}.png"
        if plot.is_file():
            body += f'<h2>{what}</h2><img alt="{what} by step" src="{data_uri(plot.read_bytes(), "image/png")}">'
    if samples:
        body += _answers(samples)
    chosen = recipe.model_dump(exclude_defaults=True)
    body += "<h2>Recipe</h2>" + render_table(["key", "value"], [[key, str(value)] for key, value in chosen.items()])
    surroundings = _surroundings(folder / "environment.json")
    if surroundings:
        body += "<h2>Environment</h2>" + render_table([], surroundings)
    path = folder / "report.html"
    path.write_text(render_page(f"Training of {folder.name}", body), encoding="utf-8")
    return path


def next_commands(folder: Path, recipe: Recipe) -> list[str]:
    """What to type after a run whose weights are in `folder`: to score it, to merge it, to serve it."""
    run, merged = shlex.quote(str(folder)), shlex.quote(f"{folder}-merged")
    given = f"{shlex.quote(str(folder / 'recipe.yaml'))} adapter_name_or_path={run}"
    scored = [f"lensmith eval {given} output_dir={shlex.quote(f'{folder}-eval')}"] if recipe.eval_dataset else []
    return [*scored, f"lensmith export {given} export_dir={merged}", f"lensmith serve {merged}"]


def _facts(result: dict[str, Any]) -> list[list[str]]:
    """The results that say something: not those that are none, empty, or a count of nothing."""
    return [
        [key.replace("eval", "validation").replace("_", " "), format_number(value)]
        for key, value in result.items()
        if value is not None and value != "" and not (isinstance(value, int) and value == 0)
    ]


def _answers(samples: Sequence[Sample]) -> str:
    before, after = (
        sum(is_right(answer, label) for answer, label in answers)
        for answers in ([(s.before, s.label) for s in samples], [(s.after, s.label) for s in samples])
    )
    rows = [
        [
            "".join(map(thumbnail, sample.images)),
            escape(sample.question),
            escape(sample.label),
            render_answer(sample.before, sample.label),
            render_answer(sample.after, sample.label),
        ]
        for sample in samples
    ]
    return (
        f"<h2>Answers before and after</h2><p>Equal to the label: {before} of {len(samples)} before, {after} "
        "after. Rows that were held out, if any were; else rows of the training.</p>"
        + render_answers(["images", "question", "label", "before", "after"], rows)
    )


def _surroundings(path: Path) -> list[list[str]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    rows = [[name, str(found[key])] for key, name in SURROUNDINGS.items() if key in found]
    packages = found.get("packages", {})
    return [*rows, ["packages", ", ".join(f"{name} {version}" for name, version in packages.items() if version)]]
