"""How fast a recipe trains on this machine, from a few steps of the real loop."""

from __future__ import annotations

import tempfile

from rich.console import Console

from finetune.recipe.schema import Recipe
from finetune.training.loop import TrainResult, train

STEPS = 4  # the first one is not counted: it compiles and allocates


def measure(recipe: Recipe) -> TrainResult:
    """Trains a few steps, without validation, into a folder that is then deleted. Raises FinetuneError."""
    with tempfile.TemporaryDirectory(prefix="lensmith-check-") as folder:
        short: dict[str, object] = {
            "output_dir": folder,
            "resume_from_checkpoint": False,
            "max_steps": STEPS,
            "val_size": 0.0,
            "eval_dataset": None,
            "eval_strategy": "no",
            "load_best_model_at_end": False,
            "early_stopping_steps": None,
            "plot_loss": False,
            "report_to": "none",
        }
        return train(recipe.model_copy(update=short), Console(quiet=True))
