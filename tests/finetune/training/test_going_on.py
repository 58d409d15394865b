"""Whatever ends a run, the same command goes on from there to the same weights."""

from __future__ import annotations

import io
import json
import random
import re
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from finetune.errors import FinetuneError
from finetune.evaluation.evaluate import evaluate
from finetune.export.merge import merge
from finetune.families.forward import LabelLoss
from finetune.recipe.schema import Recipe
from finetune.reporting.runlog import read_log
from finetune.training import trainer
from finetune.training.loop import train
from tests.support.finetune.runs import QLORA, adapter, start, wait_for_step

MakeRecipe = Callable[..., Recipe]


@pytest.fixture(scope="module")
def unbroken() -> Callable[..., bytes]:
    """Gives the adapter that a recipe of these keys ends with where nothing stops it; trains it once for all tests."""
    trained: dict[str, bytes] = {}

    def ends_with(recipe: MakeRecipe, **keys: Any) -> bytes:
        key = repr(sorted(keys.items()))
        if key not in trained:
            trained[key] = adapter(train(recipe(**keys)).output_dir)
        return trained[key]

    return ends_with


def checkpoint_steps(out: Path) -> list[int]:
    return sorted(int(path.name.rpartition("-")[2]) for path in out.glob("checkpoint-*"))


@pytest.mark.parametrize(
    ("number", "step"), [(signal.SIGHUP, 5), (signal.SIGTERM, 1), (signal.SIGKILL, 1), (signal.SIGKILL, 5)]
)
def test_after_a_signal_the_same_command_ends_alike(
    recipe: MakeRecipe, unbroken: Callable[..., bytes], tmp_path: Path, number: signal.Signals, step: int
) -> None:
    """Also from before the first checkpoint, and with overwrite_output_dir, which is not asked of a finished run."""
    keys = {"max_steps": 40, "save_steps": 3, "lora_dropout": 0.1, "overwrite_output_dir": True}
    whole = unbroken(recipe, **keys)
    stopped = recipe(**keys, output_dir=str(tmp_path / "stopped"))
    process = start(stopped, tmp_path / "stopped.yaml")
    wait_for_step(process, tmp_path / "stopped", step)
    process.send_signal(number)
    process.communicate(timeout=120)
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    steps = checkpoint_steps(tmp_path / "stopped")
    assert number == signal.SIGKILL or steps
    rest = train(stopped)
    assert rest.samples == (40 - max(steps, default=0)) * 4
    assert adapter(tmp_path / "stopped") == whole


FULL = [(random.Random(seed).randrange(1, 38), random.Random(-seed).choice([0, 300])) for seed in (1, 3)]


@pytest.mark.parametrize(("step", "left"), [(0, 40_000), *FULL])
def test_after_a_full_disk_the_same_command_ends_alike(
    recipe: MakeRecipe, unbroken: Callable[..., bytes], tmp_path: Path, step: int, left: int
) -> None:
    """From some step on no file may grow beyond what is left: log, checkpoint, best weights, whichever comes next."""
    keys = {"max_steps": 40, "save_steps": 3, "lora_dropout": 0.1, "report_to": "tensorboard", "plot_loss": True}
    keys |= {"eval_dataset": None, "val_size": 0.25, "eval_strategy": "steps", "eval_steps": 5}
    keys |= {"load_best_model_at_end": True}
    whole = unbroken(recipe, **keys)
    made = recipe(**keys, output_dir=str(tmp_path / "full"))
    process = start(made, tmp_path / "full.yaml")
    if step:
        wait_for_step(process, tmp_path / "full", step)
    _, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (left, hard))
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "Traceback" not in said
    assert re.search(r"Error: .*(could not be written|cannot hold).*\n", said)
    train(made)
    assert adapter(tmp_path / "full") == whole
    assert not list((tmp_path / "full").glob(".*"))


def test_a_full_disk_is_told_in_plain_words(recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 489344 vs 489296")

    monkeypatch.setattr("torch.save", full)
    with pytest.raises(FinetuneError, match=r"checkpoint-1 could not be written \(the disk took a part of it only"):
        train(recipe(max_steps=2, save_steps=1))


def test_a_run_killed_before_its_first_checkpoint_begins_anew_unasked(recipe: MakeRecipe, tmp_path: Path) -> None:
    made = recipe(max_steps=6, save_steps=100, output_dir=str(tmp_path / "killed"))
    process = start(made, tmp_path / "killed.yaml")
    wait_for_step(process, tmp_path / "killed", 1)
    process.kill()
    process.communicate()
    assert train(made).steps == 6


def broken_loss(call: int, error: Exception) -> Callable[..., Any]:
    forward, calls = LabelLoss.forward, []

    def broken(self: LabelLoss, *args: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            raise error
        return forward(self, *args)

    return broken


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), OSError("a worker died")])
@pytest.mark.parametrize("call", [2, 7, 12])
def test_an_error_within_a_step_saves_the_step_before(
    recipe: MakeRecipe,
    unbroken: Callable[..., bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    call: int,
) -> None:
    """With dropout and accumulated gradients, so that half a step has drawn numbers and left gradients."""
    keys = {"max_steps": 8, "lora_dropout": 0.2, "gradient_accumulation_steps": 2, "save_steps": 100}
    keys |= {"per_device_train_batch_size": 2, "val_size": 0.2, "eval_dataset": None}
    whole = unbroken(recipe, **keys)
    made = recipe(**keys, output_dir=str(tmp_path / "broken"), plot_loss=True)
    with monkeypatch.context() as patch:
        patch.setattr(LabelLoss, "forward", broken_loss(call, error))
        with pytest.raises((FinetuneError, OSError)):
            train(made)
    done = max((record["current_steps"] for record in read_log(tmp_path / "broken/trainer_log.jsonl")), default=0)
    assert checkpoint_steps(tmp_path / "broken") == ([done] if done else [])
    assert (tmp_path / "broken/training_loss.png").exists() == bool(done)
    train(made)
    assert adapter(tmp_path / "broken") == whole


@pytest.mark.parametrize("finetuning_type", ["lora", "full"])
def test_a_broken_image_saves_and_is_named(
    recipe: MakeRecipe, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finetuning_type: str
) -> None:
    keys = {"max_steps": 6, "save_steps": 100, "finetuning_type": finetuning_type, "learning_rate": 1e-4}
    keys |= {"freeze_vision_tower": finetuning_type == "lora", "per_device_train_batch_size": 2}
    unbroken = train(recipe(**keys))
    image = dataset / "images/5.png"
    sound = image.read_bytes()
    image.write_bytes(sound[: len(sound) // 2])
    made = recipe(**keys, output_dir=str(tmp_path / "broken"))
    with pytest.raises(FinetuneError, match=r"5\.png") as caught:
        train(made)
    steps = checkpoint_steps(tmp_path / "broken")
    assert (f"Step {steps[0]} is saved; the same command goes on" in caught.value.message) if steps else True
    image.write_bytes(sound)
    train(made)
    name = "adapter_model.safetensors" if finetuning_type == "lora" else "trained_weights.safetensors"
    assert (tmp_path / "broken" / name).read_bytes() == (Path(unbroken.output_dir) / name).read_bytes()


def test_a_validation_that_failed_is_made_up_for(
    recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {"max_steps": 6, "eval_dataset": None, "val_size": 0.25, "eval_strategy": "steps", "eval_steps": 2}
    keys |= {"load_best_model_at_end": True, "save_steps": 100}
    unbroken = train(recipe(**keys))
    made = recipe(**keys, output_dir=str(tmp_path / "broken"))
    with monkeypatch.context() as patch:

        def fail(*_: Any) -> None:
            raise FinetuneError("images/3.png is broken.")

        patch.setattr(trainer, "validate", fail)
        with pytest.raises(FinetuneError, match=r"3.png is broken. Step 2 is saved"):
            train(made)
    rest = train(made)
    assert (rest.best_step, rest.eval_loss) == (unbroken.best_step, unbroken.eval_loss)
    assert adapter(tmp_path / "broken") == adapter(unbroken.output_dir)


def test_more_steps_and_keys_without_effect_go_on(recipe: MakeRecipe, dataset: Path, tmp_path: Path) -> None:
    keys = {"lr_scheduler_type": "constant", "save_steps": 100}
    unbroken = train(recipe(**keys, max_steps=8))
    made = {**keys, "output_dir": str(tmp_path / "longer")}
    train(recipe(**made, max_steps=4))
    moved = tmp_path / "moved"
    shutil.move(dataset, moved)
    more = {"preprocessing_num_workers": 8, "template": "qwen", "save_total_limit": 3, "dataset_dir": str(moved)}
    rest = train(recipe(**made, **more, max_steps=8))
    assert rest.samples == 16
    assert adapter(tmp_path / "longer") == adapter(unbroken.output_dir)
    with pytest.raises(FinetuneError, match="checkpoint-8 has 8 steps, the recipe asks for 3 in all"):
        train(recipe(**made, **more, max_steps=3))


def test_overwriting_a_finished_run_begins_anew(recipe: MakeRecipe, tmp_path: Path) -> None:
    made = recipe(overwrite_output_dir=True)
    assert train(made).samples == 16
    assert train(made).samples == 16
    other = recipe(overwrite_output_dir=True, learning_rate=1e-3)
    (tmp_path / "out/train_results.json").unlink()
    assert train(other).samples == 16, "an interrupted run of another recipe"


def test_eval_and_export_name_the_checkpoint_of_an_interrupted_run(recipe: MakeRecipe, tmp_path: Path) -> None:
    train(recipe(save_steps=2, max_steps=12))
    for name in ("adapter_model.safetensors", "adapter_config.json", "train_results.json"):
        (tmp_path / "out" / name).unlink()
    made = recipe(adapter_name_or_path=str(tmp_path / "out"), export_dir=str(tmp_path / "merged"))
    for work in (merge, evaluate):
        with pytest.raises(FinetuneError, match=r"interrupted.*use its last checkpoint: .*out/checkpoint-12\.$"):
            work(made)
    merge(made.model_copy(update={"adapter_name_or_path": str(tmp_path / "out/checkpoint-12")}))


@pytest.mark.parametrize("keys", [{}, QLORA, {"use_dora": True}, {"additional_target": "embed_tokens"}])
def test_training_goes_on_from_an_adapter(recipe: MakeRecipe, tmp_path: Path, keys: dict[str, Any]) -> None:
    train(recipe(**keys, output_dir=str(tmp_path / "first")))
    console = Console(file=io.StringIO(), width=200)
    further = {**keys, "adapter_name_or_path": str(tmp_path / "first"), "learning_rate": 1e-9, "max_steps": 1}
    result = train(recipe(**further), console)
    assert f"Training goes on with {tmp_path / 'first'}" in console.file.getvalue()
    first, second = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("first", "out"))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor.float(), rtol=0, atol=1e-6)
    assert result.loss == pytest.approx(read_log(tmp_path / "first/trainer_log.jsonl")[-1]["loss"], rel=0.5)
    config = [json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("first", "out")]
    assert config[0]["target_modules"] == config[1]["target_modules"]


def test_training_goes_on_from_whole_weights(recipe: MakeRecipe, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"finetuning_type": "freeze", "freeze_trainable_layers": 1}
    train(recipe(**keys, output_dir=str(tmp_path / "first")))
    further = {"adapter_name_or_path": str(tmp_path / "first"), "learning_rate": 1e-9, "max_steps": 1}
    train(recipe(**keys, **further))
    first, second = (load_file(tmp_path / name / "trained_weights.safetensors") for name in ("first", "out"))
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"lora_rank": 8}, "lora_rank: 8 is not that of the adapter"),
        ({"use_dora": True}, "use_dora: True is not that of the adapter"),
        ({"finetuning_type": "full"}, "is an adapter, which finetuning_type: full cannot go on with"),
        ({"output_dir": "first"}, "holds the adapter to go on from; choose another folder"),
        ({"adapter_name_or_path": "nowhere"}, "adapter_name_or_path: .*nowhere does not exist"),
    ],
)
def test_what_an_adapter_cannot_go_on_with_is_refused(
    recipe: MakeRecipe, tmp_path: Path, keys: dict[str, Any], complaint: str
) -> None:
    train(recipe(output_dir=str(tmp_path / "first"), max_steps=1))
    places = {key: str(tmp_path / keys[key]) for key in ("output_dir", "adapter_name_or_path") if key in keys}
    with pytest.raises(FinetuneError, match=complaint):
        train(recipe(**{"adapter_name_or_path": str(tmp_path / "first"), **keys, **places}))
