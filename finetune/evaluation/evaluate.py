"""Scores a model on a dataset: answers of a base and adapter, or of whatever an OpenAI endpoint serves.

Each answer is written to generated_predictions.jsonl as soon as it is there; a run that was stopped goes on from them.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from rich.console import Console

from finetune.data.datasets import load_rows
from finetune.data.formats import Row
from finetune.errors import FinetuneError
from finetune.evaluation.metrics import exact_match, score_all
from finetune.evaluation.predictions import Predictions, read_predictions, record_of
from finetune.evaluation.statistics import Score, compare, interval
from finetune.recipe.load import save_recipe
from finetune.recipe.schema import Recipe
from finetune.reporting.comparison import hundredths, write_comparison
from finetune.reporting.progress import progress_bar
from modelfiles import counted

if TYPE_CHECKING:
    from finetune.evaluation.engine import Merge

SCORED = 1024  # records whose texts are in memory at once
FIGURES = "exact match {task.fields[score]:.1f} %"


class Answerer(Protocol):
    """Who answers the rows. rows: as the model gets them; identity: a digest of all that decides the answers."""

    rows: Sequence[Row]
    identity: str

    def answer(self, open_rows: Sequence[int]) -> Iterator[tuple[int, str]]:
        """(row, answer) of each of the rows, in any order. Raises FinetuneError."""


@dataclass(frozen=True)
class EvalResult:
    """Scores over `n` answers. exact_match: from 0 to 1, after stripping and case-folding both sides.

    scores: every metric's mean and 95 % interval (LLaMA-Factory's from 0 to 100, the others from 0 to 1); predictions:
    the file of prompts, predictions and labels in the dataset's order.
    """

    exact_match: float
    n: int
    scores: dict[str, Score]
    predictions: str
    seconds: float
    answers_per_second: float


@dataclass(frozen=True)
class RunComparison:
    """Two runs over the same labels: the difference of each metric's means, its interval and p (see scores.compare)."""

    difference: dict[str, Score]
    p: dict[str, float]


def evaluate(
    recipe: Recipe, console: Console | None = None, endpoint: str | None = None, engine: tuple[str, Merge] | None = None
) -> EvalResult:
    """Answers the last turn of every row of eval_dataset greedily and scores it. Raises FinetuneError.

    endpoint: the URL of an OpenAI API whose model answers, in place of the recipe's base and adapter; engine: the name
    of the engine that is to answer for them, and what merges them for it (see EngineModel).
    """
    began = time.monotonic()
    console = console or Console(stderr=True, soft_wrap=True)
    recipe.require("eval_dataset", "output_dir")
    output = Path(str(recipe.output_dir))
    data = load_rows(str(recipe.eval_dataset), recipe)
    answerer: Answerer
    if engine is not None:
        from finetune.evaluation.engine import EngineModel

        answerer = EngineModel(engine[0], recipe, data, console, engine[1])
    elif endpoint is None:
        from finetune.evaluation.local_model import LocalModel

        answerer = LocalModel(recipe, data, console)
    else:
        from finetune.evaluation.endpoint import Endpoint

        answerer = Endpoint(endpoint, recipe, data, console)
    store = Predictions(output, answerer.identity, len(data.rows), recipe.overwrite_output_dir)
    if len(store):
        console.print(f"Going on after {counted(len(store), 'answer')} in {store.path}.", highlight=False)
    save_recipe(recipe, output / "recipe.yaml")
    open_rows = store.open_rows()
    right = sum(map(_matches, store.records()))
    answering = time.monotonic()
    with closing(store), progress_bar(console, "answering", FIGURES) as progress:
        bar = progress.add_task("answering", total=len(data.rows), completed=len(store), score=math.nan)
        for index, answer in answerer.answer(open_rows):
            record = record_of(index, answerer.rows[index], answer)
            right += _matches(record)
            store.add(record)
            progress.update(bar, completed=len(store), score=100 * right / len(store))
    ended = time.monotonic()
    path = store.finish()
    records = read_predictions(path)
    scores = {name: interval(values) for name, values in _values(records, console).items()}
    result = EvalResult(
        exact_match=scores["exact_match"].mean,
        n=len(records),
        scores=scores,
        predictions=str(path),
        seconds=ended - began,
        answers_per_second=len(open_rows) / max(1e-9, ended - answering),
    )
    (output / "predict_results.json").write_text(json.dumps(asdict(result), indent=2) + "\n", encoding="utf-8")
    return result


def compare_runs(ours: Path, theirs: Path, page: Path | None = None, console: Console | None = None) -> RunComparison:
    """Compares two generated_predictions.jsonl files (or their folders); writes both side by side as `page`.

    Raises FinetuneError if the labels differ.
    """
    console = console or Console(stderr=True, soft_wrap=True)
    one, other = read_predictions(ours), read_predictions(theirs)
    if len(one) != len(other) or any(a["label"] != b["label"] for a, b in zip(one, other, strict=True)):
        raise FinetuneError(f"{ours} and {theirs} do not answer the same questions.")
    values, their_values = _values(one, console), _values(other, console)
    compared = {name: compare(values[name], their_values[name]) for name in values if name in their_values}
    comparison = RunComparison(
        {name: difference for name, (difference, _) in compared.items()}, {name: p for name, (_, p) in compared.items()}
    )
    if page is not None:
        rows = []
        for name, d in comparison.difference.items():
            means = hundredths(name, *(interval(each[name]).mean for each in (values, their_values)))
            mean, low, high = hundredths(name, d.mean, d.low, d.high)
            shown = [*(f"{one:.2f}" for one in means), f"{mean:+.2f}", f"{low:+.2f} to {high:+.2f}"]
            rows.append([name, *shown, f"{comparison.p[name]:.4f}"])
        write_comparison(page, one, other, rows, run_names(ours, theirs))
    return comparison


def run_names(ours: Path, theirs: Path) -> tuple[str, str]:
    """What two runs are called: their folders' names, or whole paths where those are alike."""
    folders = [path.parent if path.suffix == ".jsonl" else path for path in (ours.resolve(), theirs.resolve())]
    if folders[0].name == folders[1].name:
        return str(ours), str(theirs)
    return folders[0].name, folders[1].name


def _values(records: Sequence[dict[str, Any]], console: Console) -> dict[str, Any]:
    """Every metric of every record; ROUGE is left out, with a warning, where it needs a package that is missing."""
    try:
        return _scored(records, with_rouge=True)
    except FinetuneError as error:
        console.print(f"[yellow]Warning:[/] {error.message}", highlight=False)
        return _scored(records, with_rouge=False)


def _scored(records: Sequence[dict[str, Any]], with_rouge: bool) -> dict[str, Any]:
    parts = []
    for start in range(0, max(1, len(records)), SCORED):
        some = records[start : start + SCORED]
        texts = [record["predict"] for record in some], [record["label"] for record in some]
        parts.append(score_all(*texts, with_rouge=with_rouge))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _matches(record: dict[str, Any]) -> int:
    return int(exact_match(record["predict"], record["label"]))
