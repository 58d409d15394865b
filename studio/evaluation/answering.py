"""The job of an evaluation: `lensmith eval` for the base and each run, then scores, intervals and what differs.

python -m studio.evaluation.answering evaluations/NAME

It goes on where it was stopped: answers that are there are not asked for again.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

from rich.console import Console

from finetune.errors import FinetuneError
from finetune.evaluation.evaluate import compare_runs, evaluate
from finetune.evaluation.predictions import PREDICTIONS
from finetune.export.merge import merge
from finetune.recipe.load import load_recipe
from modelfiles.folder.atomic_write import write_atomically
from studio.evaluation.plan import BASE, PLAN, RUN
from studio.evaluation.results import RESULTS


def main(folder: Path) -> None:
    """Raises FinetuneError."""
    console = Console(soft_wrap=True)
    plan = json.loads((folder / PLAN).read_bytes())
    sides = [BASE, *(RUN + run for run in plan["runs"])]
    scores: dict[str, Any] = {}
    for side in sides:
        finished = folder / side / "predict_results.json"
        if not (finished.is_file() and (folder / side / PREDICTIONS).is_file()):
            console.print(f"{side} answers.", highlight=False)
            (folder / side / PREDICTIONS).unlink(missing_ok=True)  # of an end before its scores were written
            engine = (plan["engine"], merge) if plan.get("engine") else None
            evaluate(load_recipe(folder / side / "lensmith.yaml"), console, engine=engine)
        scores[side] = json.loads(finished.read_bytes())["scores"]
    console.print("Comparing.", highlight=False)
    differences = []
    for one, other in combinations(sides, 2):
        found = compare_runs(folder / other, folder / one, console=console)
        metrics = {name: asdict(score) | {"p": found.p[name]} for name, score in found.difference.items()}
        differences.append({"of": other, "from": one, "metrics": metrics})
    results = {"sides": sides, "scores": scores, "differences": differences}
    write_atomically(folder / RESULTS, (json.dumps(results, indent=2) + "\n").encode())


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except FinetuneError as error:
        print(f"Error: {error.message}", file=sys.stderr)
        sys.exit(1)
