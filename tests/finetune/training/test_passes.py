"""Runs whose micro-batches go layer by layer, as they do in CUDA graphs, beside runs by the model's own modules."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from safetensors.torch import load_file

from finetune.compute.host_stack import HostMemory
from finetune.memory import trial
from finetune.memory.plan import Plan
from finetune.recipe.schema import Recipe
from finetune.reporting.runlog import read_log
from finetune.training import loop, trainer
from finetune.training.loop import train
from finetune.training.passes import graphs
from finetune.training.passes.graphs import GraphPasses
from finetune.training.passes.modules import ModulePasses
from tests.support.finetune.runs import adapter

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def layered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains as on a GPU, without the graphs; activations of one layer are kept, the others' inputs wait elsewhere."""

    def make(base: Any, recipe: Any, data: Any, modules: Any, kept_layers: int, console: Any, feed: Any) -> Any:
        return GraphPasses(base, recipe, data, modules, 1, console, feed)

    monkeypatch.setattr(trainer, "make_passes", make)
    monkeypatch.setattr(graphs, "_host_memory", HostMemory)


def losses(output: Path) -> list[float]:
    return [record["loss"] for record in read_log(output / "trainer_log.jsonl") if "loss" in record]


@pytest.mark.parametrize("kept", [graphs.GRAPHS, 0])
def test_losses_are_those_of_the_models_own_modules(
    recipe: MakeRecipe, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    """Also where rows are padded to fewer lengths, as there are more shapes than graphs are kept."""
    monkeypatch.setattr(graphs, "GRAPHS", kept)
    keys = {"lora_dropout": 0.0, "max_steps": 12, "logging_steps": 1, "learning_rate": 1e-3}
    train(recipe(output_dir=str(tmp_path / "modules"), **keys), Console(quiet=True))
    request.getfixturevalue("layered")
    train(recipe(output_dir=str(tmp_path / "layers"), **keys), Console(quiet=True))
    expected = losses(tmp_path / "modules")
    assert len(expected) == 12
    assert expected[-1] < expected[0]
    assert losses(tmp_path / "layers") == pytest.approx(expected, rel=1e-3)


def test_a_curve_of_200_steps_is_that_of_the_models_own_modules(
    recipe: MakeRecipe, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """In float32 the loss of no step differs by more than 0.5 % of the first one's, and the weights end alike."""
    keys = {"lora_dropout": 0.0, "max_steps": 200, "logging_steps": 1, "learning_rate": 5e-4}
    keys |= {"per_device_train_batch_size": 2, "eval_dataset": None}
    train(recipe(output_dir=str(tmp_path / "modules"), **keys), Console(quiet=True))
    request.getfixturevalue("layered")
    train(recipe(output_dir=str(tmp_path / "layers"), **keys), Console(quiet=True))
    expected, found = losses(tmp_path / "modules"), losses(tmp_path / "layers")
    assert len(expected) == 200
    assert sum(expected[-20:]) < 0.2 * sum(expected[:20]), "it learns"
    assert found == pytest.approx(expected, abs=0.005 * expected[0])
    one, other = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("modules", "layers"))
    distance = sum((one[n] - other[n]).square().sum() for n in one) / sum(t.square().sum() for t in one.values())
    assert distance < 1e-4


@pytest.mark.usefixtures("layered")
def test_a_run_goes_on_bit_for_bit(recipe: MakeRecipe, tmp_path: Path) -> None:
    keys = {"lora_dropout": 0.1, "quantization_bit": 4, "logging_steps": 1, "lr_scheduler_type": "constant"}
    train(recipe(output_dir=str(tmp_path / "whole"), max_steps=5, **keys), Console(quiet=True))
    for steps in (2, 5):
        train(recipe(output_dir=str(tmp_path / "parts"), max_steps=steps, save_steps=2, **keys), Console(quiet=True))
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert adapter(tmp_path / "parts") == adapter(tmp_path / "whole")


def test_auto_tries_what_training_then_does_and_the_run_is_that_of_its_choice(
    recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The passes of a trial are gone before the next ones are made; dropout draws what it draws without a trial."""
    keys = {"per_device_train_batch_size": "auto", "gradient_accumulation_steps": 8, "eval_dataset": None}
    keys |= {"lora_dropout": 0.1, "max_steps": 3, "logging_steps": 1}
    plans = [Plan(8, 1, 0, 4, 0.0), Plan(4, 2, 1, 4, 0.0), Plan(2, 4, 4, 4, 0.0)]
    made: list[Plan] = []
    living: list[Any] = []

    def make(base: Any, recipe: Recipe, data: Any, modules: Any, kept_layers: int, console: Any, feed: Any) -> Any:
        assert not any(passes() for passes in living)
        made.append(Plan(recipe.batch_size, recipe.gradient_accumulation_steps, kept_layers, 4, 0.0))
        passes = GraphPasses(base, recipe, data, modules, kept_layers, console, feed)
        living.append(weakref.ref(passes))
        return passes

    monkeypatch.setattr(trainer, "make_passes", make)
    monkeypatch.setattr(graphs, "_host_memory", HostMemory)
    monkeypatch.setattr(ModulePasses, "learn", None)
    monkeypatch.setattr(trial, "WORSE", 0.01)  # however much slower the next plan is, it is tried
    monkeypatch.setattr(loop, "plans_here", lambda *given: plans)
    chosen = train(recipe(**keys, output_dir=str(tmp_path / "auto")), Console(quiet=True))
    assert made[:-1] == plans
    assert made[-1] in plans
    monkeypatch.setattr(loop, "plans_here", lambda *given: made[-1:])
    plain = train(recipe(**keys, output_dir=str(tmp_path / "plain")), Console(quiet=True))
    assert len(made) == len(plans) + 2
    assert chosen.samples == plain.samples == 24
    assert losses(tmp_path / "auto") == losses(tmp_path / "plain")
    assert adapter(tmp_path / "auto") == adapter(tmp_path / "plain")


@pytest.mark.parametrize(
    "keys",
    [{"packing": True, "group_by_length": False}, {"disable_gradient_checkpointing": False}],
    ids=str,
)
def test_a_run_by_modules_goes_on_bit_for_bit(recipe: MakeRecipe, tmp_path: Path, keys: dict[str, Any]) -> None:
    keys = {"lora_dropout": 0.1, "logging_steps": 1, "lr_scheduler_type": "constant", "eval_dataset": None} | keys
    train(recipe(output_dir=str(tmp_path / "whole"), max_steps=5, **keys), Console(quiet=True))
    for steps in (2, 5):
        train(recipe(output_dir=str(tmp_path / "parts"), max_steps=steps, save_steps=2, **keys), Console(quiet=True))
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert adapter(tmp_path / "parts") == adapter(tmp_path / "whole")
