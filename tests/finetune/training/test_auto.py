"""`per_device_train_batch_size: auto` and packing: a run learns what the values that were chosen would learn."""

from __future__ import annotations

import io
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from finetune.errors import FinetuneError
from finetune.memory import plan as planning
from finetune.model.base import load_base
from finetune.preflight.check import check_recipe
from finetune.preflight.report import Report
from finetune.recipe.load import load_recipe
from finetune.recipe.schema import Recipe
from finetune.training import trainer
from finetune.training.loop import train
from tests.support.finetune.runs import adapter, start, wait_for_step

MakeRecipe = Callable[..., Recipe]
AUTO: dict[str, Any] = {"per_device_train_batch_size": "auto", "gradient_accumulation_steps": 8, "eval_dataset": None}


def test_auto_is_the_run_of_the_rows_it_chose(recipe: MakeRecipe, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=1000)
    chosen = train(recipe(**AUTO, output_dir=str(tmp_path / "auto")), console)
    written = load_recipe(tmp_path / "auto" / "recipe.yaml")
    assert written.batch_size * written.gradient_accumulation_steps == 8
    assert written.batch_size == 8, "so short rows all go at once"
    assert "auto is 8 rows at once" in console.file.getvalue()  # type: ignore[attr-defined]
    assert json.loads((tmp_path / "auto" / "environment.json").read_text())["rows_at_once"]["rows"] == 8
    plain = train(recipe(eval_dataset=None, per_device_train_batch_size=8))
    record = json.loads((tmp_path / "out" / "environment.json").read_text())["rows_at_once"]
    assert record == {"rows": 8, "accumulation": 1, "kept": "all activations", "chosen": "by the recipe"}
    assert chosen.samples == plain.samples == 32
    assert adapter(tmp_path / "auto") == adapter(plain.output_dir)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_goes_on_with_the_rows_of_its_beginning(
    recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """Where the memory is another now, and with packing and dropout."""
    keys = AUTO | {"max_steps": 20, "save_steps": 3, "lora_dropout": 0.1, "packing": True}
    unbroken = train(recipe(**keys, output_dir=str(tmp_path / "unbroken")))
    stopped = recipe(**keys)
    process = start(stopped, tmp_path / "stopped.yaml")
    wait_for_step(process, tmp_path / "out", 7)
    process.send_signal(number)
    process.communicate(timeout=120)
    monkeypatch.setattr(planning, "MOST_TOKENS", 1)  # a choice made now would be of single rows
    rest = train(stopped)
    assert rest.steps == 20
    assert rest.samples < unbroken.samples
    assert load_recipe(tmp_path / "out" / "recipe.yaml").batch_size == 8
    assert adapter(tmp_path / "out") == adapter(unbroken.output_dir)


def test_packing_learns_what_padding_learns(recipe: MakeRecipe, tmp_path: Path) -> None:
    keys = {"group_by_length": False, "max_steps": 6, "val_size": 0.2, "eval_dataset": None}
    padded = train(recipe(**keys, output_dir=str(tmp_path / "padded")))
    packed = train(recipe(**keys, packing=True))
    assert packed.samples == padded.samples
    assert packed.loss == pytest.approx(padded.loss, rel=1e-4)
    assert packed.eval_loss == pytest.approx(padded.eval_loss, rel=1e-3)
    one, other = (load_file(f"{run.output_dir}/adapter_model.safetensors") for run in (padded, packed))
    # Adam divides by the gradient's size: the smallest gradients turn rounding into steps.
    distance = sum((one[n] - other[n]).square().sum() for n in one) / sum(t.square().sum() for t in one.values())
    assert distance < 1e-5


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"per_device_train_batch_size": "auto"}, "auto needs gradient_accumulation_steps: the rows of an optimiser"),
        (AUTO | {"fsdp": "full_shard"}, "auto does not go with fsdp"),
        ({"per_device_train_batch_size": "many"}, "'many' is neither a number of rows, 1 or more, nor auto"),
        ({"per_device_train_batch_size": 0}, "0 is neither"),
        ({"per_device_train_batch_size": True}, "True is neither"),
    ],
)
def test_what_auto_cannot_do_is_said(recipe: MakeRecipe, keys: dict[str, Any], complaint: str) -> None:
    with pytest.raises(FinetuneError, match=complaint):
        recipe(**keys)


def test_check_says_what_auto_would_be(recipe: MakeRecipe) -> None:
    console = Console(file=io.StringIO(), width=1000)
    from finetune.memory.cards import find_card

    assert check_recipe(recipe(**AUTO, num_train_epochs=2, max_steps=-1), Report(console), find_card("t4"))
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "auto would be 8 rows at once, keeping all activations" in said
    assert "6 steps of up to 8 rows" in said


@pytest.mark.parametrize("kept", [0, 1, 3, 4])
def test_of_any_number_of_layers_activations_may_be_kept(
    recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    """The others' are computed again, and the adapter is the same."""
    plain = train(recipe(max_steps=2, eval_dataset=None, output_dir=str(tmp_path / "plain")))
    layers = []

    def watched(*given: Any) -> Any:
        base = load_base(*given)
        layers.extend(base.model.language_model.layers)
        return base

    def planned(data: Any, made: Recipe, *rest: Any) -> list[planning.Plan]:
        return [planning.Plan(made.batch_size, made.gradient_accumulation_steps, kept, 4, 0.0)]

    monkeypatch.setattr(trainer, "load_base", watched)
    monkeypatch.setattr("finetune.training.loop.plans_here", planned)
    run = train(recipe(max_steps=2, eval_dataset=None))
    assert torch.tensor([layer.gradient_checkpointing for layer in layers]).sum() == 0, "answers are made without it"
    assert adapter(run.output_dir) == adapter(plain.output_dir)
