"""What `check` says of a recipe's rows before a model reads them: which are broken, and how."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from rich.markup import escape

from finetune.data.datasets import dataset_names, mix, read_rows
from finetune.data.formats import Row
from finetune.errors import FinetuneError
from finetune.preflight.report import Report
from finetune.recipe.schema import Recipe

SHOWN_PROBLEMS = 20
ROW = re.compile(r", row \d+(, turn \d+)?")  # what differs between the messages of rows that are broken alike


def sound_rows(recipe: Recipe, report: Report, check: Callable[[Row], None]) -> list[Row]:
    """The rows to train on that can be used; what is wrong with the others, and with validation rows, is reported.

    check: raises FinetuneError for a row that the model cannot take. Raises FinetuneError if a dataset cannot be read.
    """
    notes: list[str] = []
    problems: dict[str, list[str]] = {}
    rows = _read(str(recipe.dataset), recipe, check, problems, notes)
    if recipe.eval_dataset and recipe.eval_strategy != "no":
        _read(recipe.eval_dataset, recipe, check, problems, notes)
    for number, messages in enumerate(problems.values()):
        more = f" ({len(messages) - 1:,} more rows like it.)" if len(messages) > 1 else ""
        report.error(messages[0] + more, hidden=number >= SHOWN_PROBLEMS)
    if len(problems) > SHOWN_PROBLEMS:
        report.say(f"[red]Error:[/] ... and {len(problems) - SHOWN_PROBLEMS} more broken rows.")
    for note in notes:
        report.say(escape(note))
    return rows


def _read(
    names: str, recipe: Recipe, check: Callable[[Row], None], problems: dict[str, list[str]], notes: list[str]
) -> list[Row]:
    """The sound rows of the datasets, mixed. Rows that are written wrongly in the same way are one problem."""
    datasets: list[list[Row]] = []
    for name in dataset_names(names):
        rows = []
        for row in read_rows(name, recipe, hashlib.sha256(), notes):
            if isinstance(row, FinetuneError):
                problems.setdefault(ROW.sub("", row.message), []).append(row.message)
                continue
            try:
                check(row)
            except FinetuneError as error:
                problems.setdefault(error.message, []).append(error.message)
            else:
                rows.append(row)
        if rows:
            datasets.append(rows)
    return mix(datasets, recipe) if datasets else []


def describe_rows(rows: Sequence[Row], sizes: Sequence[tuple[int, int]], report: Report) -> None:
    """Prints how many rows and images there are, the images' sizes as they are, and which answers are empty.

    sizes: (width, height) of each image.
    """
    for source, count in Counter(row.source.rpartition(", row ")[0] for row in rows).items():
        report.say(f"{source}: {count:,} rows")
    smallest, largest = (pick(sizes, key=lambda size: size[0] * size[1], default=(0, 0)) for pick in (min, max))
    span = "" if smallest == largest else f" to {largest[0]}x{largest[1]}"
    report.say(f"{len(sizes):,} images" + (f", {smallest[0]}x{smallest[1]}{span} pixels" if sizes else ""))
    empty = [row.source for row in rows if any(m["role"] == "assistant" and not _says(m) for m in row.messages)]
    if empty:
        report.warn(f"{len(empty):,} rows have an empty answer, which teaches to say nothing: {empty[0]}.")


def _says(message: dict[str, Any]) -> bool:
    return "tool_calls" in message or any(part.get("text", "").strip() for part in message["content"])
