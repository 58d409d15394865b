"""Several runs beside each other: what differs between their recipes, and their figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from studio.runs.run import Run

# Keys that say where a run is, not what it does.
PLACES = frozenset({"output_dir", "overwrite_output_dir", "resume_from_checkpoint"})


def recipe_differences(runs: Sequence[Run]) -> list[tuple[str, list[Any]]]:
    """The keys whose values differ, with the value of each run; None where a recipe does not set it."""
    keys = dict.fromkeys(key for run in runs for key in run.recipe)
    rows = [(key, [run.recipe.get(key) for run in runs]) for key in keys if key not in PLACES]
    return [(key, values) for key, values in rows if any(value != values[0] for value in values)]


def figures(run: Run) -> dict[str, Any]:
    """What a run came to: its last and its best losses, speed, memory and time."""
    return {
        "steps": run.steps,
        "loss": run.last("loss"),
        "eval_loss": run.last("eval_loss"),
        "best_eval_loss": run.log.best_eval_loss,
        "throughput": run.last("throughput"),
        "memory": run.last("vram_reserved"),
        "elapsed": run.last("elapsed_time"),
    }
