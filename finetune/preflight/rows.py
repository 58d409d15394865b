"""What `check` says of a recipe's rows: how many there are, which are broken, and how."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from rich.markup import escape

from finetune.data.tables.rows import Rows
from finetune.errors import FinetuneError
from finetune.preflight.report import Report
from finetune.recipe.schema import Recipe
from modelfiles import counted

SHOWN_PROBLEMS = 20
ROW = re.compile(r", row \d+(, turn \d+)?")  # what differs between the messages of rows that are broken alike


def broken_rows(rows: Rows, wrong: Mapping[int, str]) -> Iterator[tuple[str, str]]:
    """(a key that is equal for rows that are written wrongly in the same way, what is wrong) of broken rows."""
    for number, message in wrong.items():
        is_written_wrongly = isinstance(rows[number], FinetuneError)
        yield ROW.sub("", message) if is_written_wrongly else message, message


def describe_broken(broken: Iterable[tuple[str, str]], recipe: Recipe, report: Report) -> None:
    """Prints what is wrong with rows: errors, or with bad_rows: skip what is left out.

    broken: of `broken_rows`; those with the same key are one problem.
    """
    problems: dict[str, list[str]] = {}
    for key, message in broken:
        problems.setdefault(key, []).append(message)
    skips = recipe.bad_rows == "skip"
    for number, alike in enumerate(problems.values()):
        text = alike[0] + (f" ({counted(len(alike) - 1, 'more row')} like it.)" if len(alike) > 1 else "")
        if not skips:
            report.error(text, hidden=number >= SHOWN_PROBLEMS)
        elif number < SHOWN_PROBLEMS:
            report.warn(f"left out: {text}")
    if len(problems) > SHOWN_PROBLEMS:
        kind = "[yellow]Warning:[/]" if skips else "[red]Error:[/]"
        report.say(f"{kind} ... and {counted(len(problems) - SHOWN_PROBLEMS, 'more broken row')}.")
    if skips and problems:
        report.warn(
            f"{counted(sum(map(len, problems.values())), 'broken row is', 'broken rows are')} left out "
            "(bad_rows: skip)."
        )


def describe_rows(
    sources: Iterable[tuple[str, int]], sizes: Sequence[tuple[int, int]], empty: Sequence[str], report: Report
) -> None:
    """Prints how many rows and images there are, the images' sizes as they are, and which answers are empty.

    sources: each data file and its rows; sizes: (width, height) of each image; empty: rows with an empty answer.
    """
    for source, count in sources:
        report.say(f"{escape(source)}: {counted(count, 'row')}")
    smallest, largest = (pick(sizes, key=lambda size: size[0] * size[1], default=(0, 0)) for pick in (min, max))
    span = "" if smallest == largest else f" to {largest[0]}x{largest[1]}"
    report.say(counted(len(sizes), "image") + (f", {smallest[0]}x{smallest[1]}{span} pixels" if sizes else ""))
    if empty:
        report.warn(
            f"{counted(len(empty), 'row has', 'rows have')} an empty answer, which teaches to say nothing: {empty[0]}."
        )


def say_nothing_is_left(report: Report) -> None:
    report.say("No row can be trained on.")
    if not report.problems:
        report.error("no row can be trained on.", hidden=True)
