"""The trackers of experiments that a run can report to besides TensorBoard: each through its own library.

What a library wants to know (keys, project, offline or not) it asks its own environment variables, such as
WANDB_PROJECT, MLFLOW_TRACKING_URI or SWANLAB_API_KEY. A run's name is that of its output_dir.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any, Protocol

from finetune.errors import FinetuneError
from finetune.recipe.values import TRACKERS

PROJECT = "lensmith"  # where the library's own variable names none


class Tracker(Protocol):
    def log(self, values: dict[str, float], step: int) -> None: ...

    def finish(self) -> None: ...


def refuse_missing(names: str) -> None:
    """Raises FinetuneError if the library of one of the comma-separated trackers is not installed."""
    for name in chosen(names):
        _library(name)


def chosen(names: str) -> list[str]:
    """The trackers among the names of report_to."""
    return [name for name in names.split(",") if name in TRACKERS]


def start_trackers(names: str, folder: Path, keys: dict[str, Any]) -> list[Tracker]:
    """A run in each tracker that report_to names. keys: the recipe's. Raises FinetuneError if one cannot be started."""
    started: list[Tracker] = []
    for name in chosen(names):
        library = _library(name)
        try:
            started.append(Mlflow(library, folder.name, keys) if name == "mlflow" else Run(name, library, folder, keys))
        except Exception as error:  # whatever the library meets: no key, no network, no such project
            for tracker in started:
                tracker.finish()
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise FinetuneError(
                f"report_to: {name} cannot be started: {reason}. See its documentation, or take it out of report_to."
            ) from None
    return started


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise FinetuneError(f"report_to: {name} is not installed: pip install {name}.") from None


class Run:
    """A run of wandb, swanlab or trackio, which are called alike."""

    def __init__(self, name: str, library: Any, folder: Path, keys: dict[str, Any]) -> None:
        self.library = library
        own = {
            "wandb": {"name": folder.name, "dir": str(folder)},
            "swanlab": {"experiment_name": folder.name, "logdir": str(folder / "swanlog")},
            "trackio": {"name": folder.name},
        }[name]
        library.init(project=os.environ.get(f"{name.upper()}_PROJECT", PROJECT), config=keys, **own)

    def log(self, values: dict[str, float], step: int) -> None:
        self.library.log(values, step=step)

    def finish(self) -> None:
        self.library.finish()


class Mlflow:
    """A run of MLflow, in the experiment that MLFLOW_EXPERIMENT_NAME names."""

    def __init__(self, library: Any, name: str, keys: dict[str, Any]) -> None:
        self.library = library
        if "MLFLOW_EXPERIMENT_NAME" not in os.environ and "MLFLOW_EXPERIMENT_ID" not in os.environ:
            library.set_experiment(PROJECT)
        library.start_run(run_name=name)
        library.log_params(keys)

    def log(self, values: dict[str, float], step: int) -> None:
        self.library.log_metrics(values, step=step)

    def finish(self) -> None:
        self.library.end_run()
