"""`report_to`: the trackers of experiments get the curves through their libraries, here stand-ins."""

from __future__ import annotations

import io
import sys
import types
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from finetune.errors import FinetuneError
from finetune.preflight.check import check_recipe
from finetune.preflight.report import Report
from finetune.recipe.load import make_recipe
from finetune.recipe.schema import Recipe
from finetune.training.loop import train

MakeRecipe = Callable[..., Recipe]
Calls = list[tuple[str, Any]]


def stand_in(patch: pytest.MonkeyPatch, name: str, functions: str) -> Calls:
    """A library of these functions; what they are called with. One that is called `fail` raises."""
    calls: Calls = []
    module = types.ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    for function in functions.split():
        setattr(module, function, lambda *args, _name=function, **keys: calls.append((_name, (args, keys))))
    patch.setitem(sys.modules, name, module)
    return calls


@pytest.mark.parametrize("name", ["wandb", "swanlab", "trackio"])
def test_a_run_is_reported_alike(recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    calls = stand_in(monkeypatch, name, "init log finish")
    monkeypatch.setenv(f"{name.upper()}_PROJECT", "shapes")
    train(recipe(report_to=["tensorboard", name], max_steps=3))
    (first, (_, start)), *logged, (last, _) = calls
    assert (first, last) == ("init", "finish")
    assert start["project"] == "shapes"
    assert "out" in (start.get("name"), start.get("experiment_name"))
    assert start["config"]["lora_rank"] == 4
    assert [(kind, keys["step"]) for kind, (_, keys) in logged] == [("log", 1), ("log", 2), ("log", 3)]
    assert all(values["train/loss"] > 0 for _, ((values,), _) in logged)


def test_mlflow_gets_an_experiment_parameters_and_metrics(recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = stand_in(monkeypatch, "mlflow", "set_experiment start_run log_params log_metrics end_run")
    train(recipe(report_to="mlflow", max_steps=2))
    order = ["set_experiment", "start_run", "log_params", "log_metrics", "log_metrics", "end_run"]
    assert [name for name, _ in calls] == order
    assert calls[1][1][1] == {"run_name": "out"}


def test_a_tracker_that_fails_later_is_left_out(
    recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, "wandb", "init finish")  # it has no `log`
    console = Console(file=io.StringIO(), width=200)
    assert train(recipe(report_to="wandb"), console).steps == 4
    said = console.file.getvalue()
    assert said.count("Warning: report_to: a tracker fails and is left out: module 'wandb' has no attribute 'log'") == 1


def test_a_tracker_that_does_not_start_ends_the_run_at_once(
    recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, "wandb", "log finish")
    with pytest.raises(FinetuneError, match=r"report_to: wandb cannot be started: .*'init'\. See its documentation"):
        train(recipe(report_to="wandb"))


def test_a_library_that_is_missing_is_named_before_anything_is_read(
    recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    made = recipe(report_to="tensorboard,trackio")
    with pytest.raises(FinetuneError, match="report_to: trackio is not installed: pip install trackio"):
        train(made)
    report = Report(Console(quiet=True))
    assert not check_recipe(made, report)
    assert report.problems == ["report_to: trackio is not installed: pip install trackio."]


def test_other_names_are_refused() -> None:
    with pytest.raises(
        FinetuneError, match=r"'comet_ml' is none of none, tensorboard, all, wandb, mlflow, swanlab, tr"
    ):
        make_recipe({"model_name_or_path": "x", "report_to": ["wandb", "comet_ml"]})
