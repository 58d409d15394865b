from __future__ import annotations

import html
import io
import json
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from safetensors.torch import load_file

from finetune.data.datasets import load_rows
from finetune.encoding.chat_encoder import ChatEncoder
from finetune.encoding.encoded import Encoded
from finetune.errors import FinetuneError
from finetune.evaluation.evaluate import evaluate
from finetune.families.batch import collate_train
from finetune.families.features import FrozenFeatures
from finetune.families.forward import LabelLoss
from finetune.families.qwen_vl import load_processor
from finetune.media import bank as images
from finetune.media.bank import ImageBank
from finetune.media.pixel_limits import pixel_limits
from finetune.memory.cards import Card
from finetune.model.base import four_bit_layers, load_base, old_names_allowed
from finetune.model.folder import open_base
from finetune.model.targets import make_trainable
from finetune.model.tensors import gather_full
from finetune.recipe.schema import Recipe
from finetune.reporting.runlog import read_log
from finetune.training import oom, trainer
from finetune.training.dataset import load_training_data, split_by_image
from finetune.training.loop import train
from finetune.training.optim import learning_rate, load_optimizer, total_steps
from tests.support.finetune.runs import QLORA, adapter, start, wait_for_step
from tests.support.finetune.shapes_data import ask, write_dataset

MakeRecipe = Callable[..., Recipe]
CPU = torch.device("cpu")
FULL = {"finetuning_type": "full", "freeze_vision_tower": False, "freeze_multi_modal_projector": False}


class Parts:
    """What `train` sets up, for looking inside one step."""

    def __init__(self, recipe: Recipe) -> None:
        folder = open_base(recipe)
        self.recipe = recipe
        limits = pixel_limits(folder, recipe)
        self.processor, self.bank = load_processor(folder, limits), ImageBank(limits)
        self.data = load_rows("shapes", recipe)
        self.rows = ChatEncoder(folder, self.processor, self.bank).encode(self.data.rows)
        self.base = load_base(folder, recipe, CPU, torch.float32)
        order = [image for row in self.rows for image in row.images]
        self.features = FrozenFeatures(self.base, self.bank, self.processor, order)
        self.model = make_trainable(self.base, recipe)

    def loss(self, *rows: int) -> Any:
        batch = collate_train([self.rows[row] for row in rows], CPU)
        return LabelLoss(self.base)(batch, self.features.get(batch.images))

    def gradients(self) -> dict[str, Any]:
        return {n: p.grad.clone() for n, p in self.model.named_parameters() if p.requires_grad}


def test_the_loss_is_transformers_own(recipe: MakeRecipe) -> None:
    parts = Parts(recipe())
    row = parts.data.rows[0]
    from finetune.media.image_files import decode

    images = [decode(path) for path in row.images]
    text = parts.processor.apply_chat_template(row.messages, tokenize=False)
    inputs = parts.processor(text=[text], images=images, return_tensors="pt")
    labels = inputs["input_ids"].clone()
    labels[0, ~torch.from_numpy(parts.rows[0].labelled)] = -100
    theirs = parts.base(**inputs, labels=labels).loss
    ours = parts.loss(0) / int(parts.rows[0].labelled.sum())
    assert torch.allclose(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize("keys", [{}, QLORA, {"use_rslora": True}, {"use_dora": True}])
def test_every_adapter_parameter_learns_and_nothing_else(recipe: MakeRecipe, keys: dict[str, Any]) -> None:
    parts = Parts(recipe(**keys))
    names = [name for name, p in parts.model.named_parameters() if p.requires_grad]
    assert len(names) == (3 if "use_dora" in keys else 2) * 4 * 7
    assert all("language_model" in name and "lora_" in name for name in names)
    optimizer = torch.optim.SGD([p for p in parts.model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):  # B starts at zero, so A's first gradient is zero
        optimizer.zero_grad()
        parts.loss(0, 1, 2).backward()
        found = parts.gradients()
        optimizer.step()
    assert all(torch.isfinite(gradient).all() and gradient.abs().sum() > 0 for gradient in found.values())
    assert all(p.dtype == torch.float32 for p in parts.model.parameters() if p.requires_grad)


def test_neftune_is_noise_in_training_alone(recipe: MakeRecipe, tmp_path: Path) -> None:
    parts = Parts(recipe())
    batch = collate_train([parts.rows[0], parts.rows[5]], CPU)
    features = parts.features.get(batch.images)
    seen = []
    parts.base.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"].detach()), with_kwargs=True
    )
    loss = LabelLoss(parts.base, noise=5.0)
    loss(batch, features)
    loss.noisy = False
    loss(batch, features)
    noise = seen[0] - seen[1]
    is_image = batch.ids == parts.base.config.image_token_id
    assert not noise[is_image].any()
    most = 5.0 / (noise.shape[1] * noise.shape[2]) ** 0.5
    assert noise.abs().max() <= most * 1.001
    assert noise[~is_image].std() == pytest.approx(most / 3**0.5, rel=0.05)  # uniform
    keys = {"eval_dataset": None, "val_size": 0.25, "learning_rate": 1e-9}
    plain = train(recipe(**keys))
    noisy = train(recipe(**keys, neftune_noise_alpha=5.0, output_dir=str(tmp_path / "noisy")))
    assert noisy.loss != pytest.approx(plain.loss, rel=1e-6)
    assert noisy.eval_loss == pytest.approx(plain.eval_loss, rel=1e-4)


def test_paged_adamw_says_what_it_is_without_a_gpu(recipe: MakeRecipe, tmp_path: Path) -> None:
    said = io.StringIO()
    train(recipe(optim="paged_adamw_8bit", max_steps=1), Console(file=said, width=200))
    assert "paged_adamw_8bit needs a GPU; adamw_torch is used instead" in said.getvalue()


def test_8_bit_states_go_on_bit_for_bit_from_a_checkpoint() -> None:
    """bitsandbytes wraps their quantised parts; on a GPU tests/gpu takes a whole run through it."""
    from bitsandbytes.optim import AdamW8bit

    def steps(weight: Any, optimizer: Any, numbers: range) -> None:
        for number in numbers:
            weight.grad = torch.randn(128, 64, generator=torch.Generator().manual_seed(number))
            optimizer.step()

    def start(values: Any) -> tuple[Any, Any]:
        weight = torch.nn.Parameter(values.clone())
        return weight, AdamW8bit([{"params": [weight], "ratio": 1.0}], lr=1e-2)

    unbroken, optimizer = start(torch.ones(128, 64))
    steps(unbroken, optimizer, range(6))
    first, optimizer = start(torch.ones(128, 64))
    steps(first, optimizer, range(3))
    file = io.BytesIO()
    torch.save(gather_full(optimizer.state_dict()), file)
    second, optimizer = start(first.detach())
    file.seek(0)
    load_optimizer(optimizer, torch.load(file, map_location="cpu", weights_only=True))
    steps(second, optimizer, range(3, 6))
    assert torch.equal(second, unbroken)


def test_loraplus_moves_b_faster(recipe: MakeRecipe, tmp_path: Path) -> None:
    """Adam's first step is the learning rate in every element, so the steps' ratio is the rates' ratio."""
    keys = {"max_steps": 1, "learning_rate": 1e-4}
    plain = load_file(f"{train(recipe(**keys)).output_dir}/adapter_model.safetensors")
    train(recipe(**keys, loraplus_lr_ratio=16, output_dir=str(tmp_path / "plus")))
    plus = load_file(tmp_path / "plus/adapter_model.safetensors")
    for name, tensor in plain.items():
        if "lora_A" in name:
            assert torch.equal(plus[name], tensor)
        else:
            assert torch.allclose(plus[name], 16 * tensor, rtol=1e-3, atol=1e-9)


def test_gradient_checkpointing_gives_the_same_gradients(recipe: MakeRecipe) -> None:
    parts = Parts(recipe(**QLORA | {"lora_dropout": 0.0}))
    parts.loss(0, 4, 9).backward()
    plain = parts.gradients()
    parts.model.zero_grad()
    with old_names_allowed():
        parts.base.model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
    parts.loss(0, 4, 9).backward()
    assert all(torch.allclose(plain[n], g, atol=1e-6) for n, g in parts.gradients().items())


def test_padding_changes_nothing(recipe: MakeRecipe) -> None:
    parts = Parts(recipe())
    together = parts.loss(0, 1, 10, 11)
    alone = sum(parts.loss(row) for row in (0, 1, 10, 11))
    assert torch.allclose(together, alone, rtol=1e-5)


def test_four_bits_are_the_language_models_alone(recipe: MakeRecipe) -> None:
    parts = Parts(recipe(quantization_bit=4))
    names = four_bit_layers(parts.base)
    assert len(names) == 28
    assert all("language_model" in name for name in names)
    assert {p.dtype for p in parts.base.model.visual.parameters()} == {torch.float32}


def test_accumulated_batches_are_one_big_batch(recipe: MakeRecipe, tmp_path: Path) -> None:
    """Rows of one to four label tokens, so a mean of means would differ."""
    keys = {"group_by_length": False, "max_steps": 3}
    big = train(recipe(**keys, per_device_train_batch_size=8, output_dir=str(tmp_path / "big")))
    small = train(recipe(**keys, per_device_train_batch_size=2, gradient_accumulation_steps=4))
    one, other = (
        load_file(f"{big.output_dir}/adapter_model.safetensors"),
        load_file(f"{small.output_dir}/adapter_model.safetensors"),
    )
    assert one.keys() == other.keys()
    assert big.samples == small.samples == 24
    # Adam divides by the gradient's size: the smallest gradients turn rounding into steps.
    assert all((one[name] - other[name]).abs().max() < 2e-3 for name in one)
    distance = sum((one[n] - other[n]).square().sum() for n in one) / sum(t.square().sum() for t in one.values())
    assert distance < 1e-5


def test_training_learns_and_leaves_its_records(recipe: MakeRecipe, tmp_path: Path) -> None:
    result = train(recipe(**QLORA, max_steps=30, plot_loss=True, report_to="tensorboard", save_steps=20))
    out = tmp_path / "out"
    log = read_log(out / "trainer_log.jsonl")
    assert [record["current_steps"] for record in log] == list(range(1, 31))
    assert log[-1]["loss"] < log[0]["loss"] / 4
    assert (result.steps, result.samples, result.four_bit_layers, result.interrupted) == (30, 120, 28, None)
    assert {path.name for path in out.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "checkpoint-20", "checkpoint-30", "environment.json",
        "recipe.yaml", "report.html", "runs", "train_results.json", "trainer_log.jsonl", "training_loss.png",
    }  # fmt: skip
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "runs")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 31))
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (4, 8, "LORA")
    assert json.loads((out / "environment.json").read_text())["data_sha256"]


def test_each_image_is_decoded_once(recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    decode, seen = images.decode, []

    def counted(path: Path) -> Any:
        seen.append(path)
        return decode(path)

    monkeypatch.setattr(images, "decode", counted)  # the proof of the first rows keeps the original
    assert train(recipe(max_steps=-1, num_train_epochs=3)).samples == 72
    assert len(seen) == len(set(seen)) == 8


def test_the_same_seed_gives_the_same_bytes(recipe: MakeRecipe, tmp_path: Path) -> None:
    first = train(recipe(**QLORA))
    again = train(recipe(**QLORA, output_dir=str(tmp_path / "again")))
    other = train(recipe(**QLORA, output_dir=str(tmp_path / "other"), seed=1))
    assert adapter(first.output_dir) == adapter(again.output_dir)
    assert adapter(first.output_dir) != adapter(other.output_dir)


def test_ten_steps_are_five_and_five(recipe: MakeRecipe, tmp_path: Path) -> None:
    keys = {**QLORA, "max_steps": 10, "save_steps": 5, "logging_steps": 4}
    whole = train(recipe(**keys))
    half = tmp_path / "half"
    shutil.copytree(tmp_path / "out/checkpoint-5", half / "checkpoint-5")
    shutil.copy(tmp_path / "out/trainer_log.jsonl", half)  # as a killed run leaves it: longer than its checkpoint
    rest = train(recipe(**keys, output_dir=str(half)))
    assert rest.samples == whole.samples // 2
    assert adapter(half) == adapter(whole.output_dir)
    assert [(r["current_steps"], r["loss"]) for r in read_log(half / "trainer_log.jsonl")] == [
        (r["current_steps"], r["loss"]) for r in read_log(tmp_path / "out/trainer_log.jsonl")
    ]


VALIDATED = {"eval_dataset": None, "val_size": 0.25, "eval_strategy": "steps", "eval_steps": 2}


def test_validation_is_the_loss_of_held_out_rows(recipe: MakeRecipe, tmp_path: Path) -> None:
    result = train(recipe(**VALIDATED, max_steps=5, lora_dropout=0.5))
    log = read_log(tmp_path / "out/trainer_log.jsonl")
    assert [record["current_steps"] for record in log if "eval_loss" in record] == [2, 4, 5]
    assert result.eval_loss == log[-1]["eval_loss"]
    parts = Parts(recipe())
    parts.model.load_adapter(str(tmp_path / "out"), "default")
    held_out = split_by_image(parts.rows, parts.bank.paths, 0.25, 42)[1]
    assert len(held_out) == 6
    batch = collate_train(held_out, CPU)
    loss = LabelLoss(parts.base)(batch, parts.features.get(batch.images)) / len(batch.labels)
    assert loss.item() == pytest.approx(result.eval_loss, rel=1e-5)


def test_the_best_adapter_is_kept(recipe: MakeRecipe, tmp_path: Path) -> None:
    explodes = {"learning_rate": 2.0, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 200}
    keys = {**VALIDATED, **explodes, "max_steps": 12, "max_grad_norm": 0}
    result = train(recipe(**keys, load_best_model_at_end=True))
    losses = {
        record["current_steps"]: record["eval_loss"]
        for record in read_log(tmp_path / "out/trainer_log.jsonl")
        if "eval_loss" in record
    }
    best = min(losses, key=lambda step: losses[step])
    assert best < 12, "the test needs a run that gets worse"
    assert (result.best_step, result.eval_loss) == (best, losses[best])
    assert adapter(tmp_path / "out") == adapter(tmp_path / "out/best_adapter")
    assert adapter(tmp_path / "out") != adapter(tmp_path / "out/checkpoint-12")


def test_training_stops_early_and_resumes_alike(recipe: MakeRecipe, tmp_path: Path) -> None:
    keys = {**VALIDATED, "max_steps": 40, "learning_rate": 0.05, "early_stopping_steps": 2, "save_steps": 3}
    keys |= {"load_best_model_at_end": True}
    whole = train(recipe(**keys))
    assert whole.steps < 40
    shutil.copytree(tmp_path / "out/checkpoint-3", tmp_path / "rest/checkpoint-3")
    if (tmp_path / "out/best_adapter").exists() and whole.best_step == 2:
        shutil.copytree(tmp_path / "out/best_adapter", tmp_path / "rest/best_adapter")
    rest = train(recipe(**keys, output_dir=str(tmp_path / "rest")))
    assert (rest.steps, rest.best_step, rest.eval_loss) == (whole.steps, whole.best_step, whole.eval_loss)
    assert adapter(tmp_path / "rest") == adapter(tmp_path / "out")


def test_validating_does_not_change_what_is_learnt(recipe: MakeRecipe, tmp_path: Path) -> None:
    keys = {"eval_dataset": None, "val_size": 0.25, "lora_dropout": 0.2}
    train(recipe(**keys))
    train(recipe(**keys, eval_strategy="steps", eval_steps=1, output_dir=str(tmp_path / "often")))
    assert adapter(tmp_path / "out") == adapter(tmp_path / "often")


row_images = st.lists(st.lists(st.integers(0, 15), max_size=3), min_size=2, max_size=40)
FILES = [f"{number % 13}.png" for number in range(16)]  # the first three also as smaller images


@given(images=row_images, size=st.one_of(st.floats(0.01, 0.9), st.integers(1, 10)), seed=st.integers(0, 9))
def test_no_image_is_on_both_sides_of_the_split(images: list[list[int]], size: float, seed: int) -> None:
    rows = [Encoded(*[np.zeros(1)] * 3, tuple(found), f"row {n}") for n, found in enumerate(images)]
    try:
        training, validation = split_by_image(rows, FILES, size, seed)
    except FinetuneError:
        return
    assert sorted(row.source for row in training + validation) == sorted(row.source for row in rows)
    seen, held_out = ({FILES[i] for row in side for i in row.images} for side in (training, validation))
    assert not seen & held_out
    assert len(validation) >= (round(size * len(rows)) if size < 1 else size)


def test_a_killed_run_ends_as_an_unbroken_one(recipe: MakeRecipe, tmp_path: Path) -> None:
    keys = {**QLORA, "max_steps": 40, "save_steps": 3}
    whole = train(recipe(**keys))
    killed = recipe(**keys, output_dir=str(tmp_path / "killed"))
    process = start(killed, tmp_path / "killed.yaml")
    wait_for_step(process, tmp_path / "killed", 8)
    process.kill()
    process.communicate()
    assert not (tmp_path / "killed/adapter_model.safetensors").exists()
    assert train(killed).steps == 40
    assert adapter(tmp_path / "killed") == adapter(whole.output_dir)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_ends(recipe: MakeRecipe, tmp_path: Path, number: signal.Signals) -> None:
    """And what it has learned until then is in a plot and a report."""
    endless = recipe(max_steps=100_000, plot_loss=True)
    process = start(endless, tmp_path / "endless.yaml", measured=True)
    wait_for_step(process, tmp_path / "out", 3)
    process.send_signal(number)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number, errors
    assert "the same command goes on from there" in output
    assert "Traceback" not in errors
    (saved,) = (tmp_path / "out").glob("checkpoint-*")
    assert int(saved.name.rpartition("-")[2]) == read_log(tmp_path / "out/trainer_log.jsonl")[-1]["current_steps"]
    assert (tmp_path / "out/training_loss.png").exists()
    assert "data:image/png" in (tmp_path / "out/report.html").read_text()
    assert not (tmp_path / "out/train_results.json").exists()


def test_a_checkpoint_of_another_recipe_is_refused(recipe: MakeRecipe) -> None:
    train(recipe())
    with pytest.raises(FinetuneError, match=r"made with learning_rate 0.002, now it is 0.1; restore it, or"):
        train(recipe(learning_rate=0.1))


def test_a_broken_checkpoint_is_refused(recipe: MakeRecipe, tmp_path: Path) -> None:
    train(recipe())
    (tmp_path / "out/checkpoint-4/state.pt").write_bytes(b"\x80garbage")
    with pytest.raises(FinetuneError, match="checkpoint-4 is broken"):
        train(recipe())


def test_a_full_disk_leaves_the_last_checkpoint_whole(
    recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = torch.save, []

    def save(state: Any, path: Path) -> None:
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        real(state, path)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(FinetuneError, match=r"No space left on device.*last good one is .*checkpoint-2"):
        train(recipe(max_steps=6, save_steps=2))
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "out").glob("*checkpoint*")] == ["checkpoint-2"]
    assert train(recipe(max_steps=6, save_steps=2)).samples == 16


def test_only_the_newest_checkpoints_are_kept(recipe: MakeRecipe, tmp_path: Path) -> None:
    train(recipe(max_steps=6, save_steps=2, save_total_limit=2))
    assert sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]


def test_a_full_output_dir_is_not_overwritten_unasked(recipe: MakeRecipe, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("mine")
    with pytest.raises(FinetuneError, match="is not empty; set overwrite_output_dir: true"):
        train(recipe())
    train(recipe(overwrite_output_dir=True))
    assert (tmp_path / "out/thesis.txt").read_text() == "mine"


def test_long_rows_are_left_out_whole(recipe: MakeRecipe, dataset: Path) -> None:
    write_dataset(dataset, [ask("shape " * (100 if n % 4 else 1), "red", 0) for n in range(8)])
    assert train(recipe(cutoff_len=64)).dropped_rows == 6
    with pytest.raises(FinetuneError, match="Every row is longer than cutoff_len 10"):
        train(recipe(cutoff_len=10, overwrite_output_dir=True))


def broken_from(first: int, until: int = 1000) -> Callable[..., Any]:
    """LabelLoss.forward with a NaN in its calls `first` to `until`."""
    forward, calls = LabelLoss.forward, []

    def broken(self: LabelLoss, *args: Any) -> Any:
        calls.append(1)
        return forward(self, *args) * (float("nan") if first < len(calls) <= until else 1.0)

    return broken


def test_a_loss_that_is_not_finite_names_the_rows(recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LabelLoss, "forward", broken_from(0))
    with pytest.raises(FinetuneError, match=r"3 steps in a row had no finite gradient.*shapes.json, row \d+"):
        train(recipe())


def test_a_step_that_is_not_finite_is_skipped_and_counted(
    recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LabelLoss, "forward", broken_from(2, until=4))
    result = train(recipe(max_steps=6))
    assert (result.steps, result.skipped_steps) == (6, 2)
    log = read_log(tmp_path / "out/trainer_log.jsonl")
    assert [record["current_steps"] for record in log] == [1, 2, 5, 6]
    assert all(
        torch.isfinite(tensor).all() for tensor in load_file(tmp_path / "out/adapter_model.safetensors").values()
    )


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"model_name_or_path": "/nowhere"}, "model_name_or_path: /nowhere does not exist"),
        ({"lora_target": "q_proj,z_proj"}, "no linear 'z_proj'; they have down_proj"),
        ({"lora_target": ".*(q|v)_prj"}, r"matches no linear; they are named like model\.language_model"),
        ({"lora_target": "(q_proj"}, "is not a regular expression"),
        ({"additional_target": "head"}, "additional_target: the model has no module 'head'"),
        ({"additional_target": "q_proj", "quantization_bit": 4}, r"additional_target: .*q_proj is in 4 bits"),
        ({"finetuning_type": "freeze", "freeze_trainable_modules": "mlp,moe"}, "the layers have no moe"),
        ({"use_dora": True, "quantization_bit": 4}, "use_dora on a 4-bit base needs a GPU"),
        ({"dataset": None}, "The recipe lacks dataset"),
        ({"resume_from_checkpoint": True}, "has no checkpoint"),
        ({"resume_from_checkpoint": "/nowhere"}, "/nowhere is no checkpoint"),
    ],
)
def test_what_cannot_be_trained_is_explained(recipe: MakeRecipe, keys: dict[str, Any], complaint: str) -> None:
    with pytest.raises(FinetuneError, match=complaint):
        train(recipe(**keys))


def test_out_of_memory_names_the_keys_to_change(recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """The estimate fits the card, so something else took its memory: the advice is for a smaller one."""

    def full(self: LabelLoss, *args: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(LabelLoss, "forward", full)
    monkeypatch.setattr(oom, "this_card", lambda: Card("a card", 1.0, (7, 5)))
    with pytest.raises(FinetuneError, match=r"out of memory; it should fit with \w+=") as caught:
        train(recipe(disable_gradient_checkpointing=True, per_device_train_batch_size=24))
    assert "disable_gradient_checkpointing=false" in caught.value.message


@pytest.mark.parametrize("keys", [{"quantization_bit": 4}, {"additional_target": "embed_tokens"}, FULL])
def test_the_report_shows_answers_before_and_after(recipe: MakeRecipe, tmp_path: Path, keys: dict[str, Any]) -> None:
    """Those of `eval` with the base, and with what was trained."""
    keys = keys | {"max_steps": 8, "learning_rate": 3e-3, "disable_gradient_checkpointing": False}
    train(recipe(**keys))
    data = load_training_data(recipe(), Console(quiet=True))
    shown = [data.rows[index].source for index in (0, 2, 4, 6, 8, 10, 13, 15, 17, 19, 21, 23)]
    page = (tmp_path / "out/report.html").read_text()
    rows = re.findall(r"<tr><td><img alt=(.*?)</tr>", page)
    assert len(rows) == 12
    ran = {"before": {}, "after": {"adapter_name_or_path": str(tmp_path / "out")}}
    for name, adapter_keys in ran.items():
        base = {key: value for key, value in keys.items() if key == "quantization_bit"}
        evaluate(recipe(**base, **adapter_keys, output_dir=str(tmp_path / name)))
        answers = [json.loads(line) for line in (tmp_path / name / "generated_predictions.jsonl").open()]
        by_row = {f"{source.source}": answer for source, answer in zip(data.rows, answers, strict=True)}
        for row, source in zip(rows, shown, strict=True):
            cells = re.split("<td.*?>", re.sub(r"</?span.*?>", "", row))
            question, label, before, after = (html.unescape(cell.removesuffix("</td>")) for cell in cells[1:])
            assert by_row[source]["prompt"].endswith(question)
            assert label == by_row[source]["label"]
            assert {"before": before, "after": after}[name] == by_row[source]["predict"].strip()
    assert page.count('class="right"') + page.count('class="wrong"') == 24


def test_answers_for_the_report_take_no_more_rows_at_once_than_training(
    recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []

    def record(module: Any, args: Any, kwargs: Any) -> None:
        rows.append(len(kwargs["inputs_embeds"]))

    def watched(folder: Any, *rest: Any) -> Any:
        base = load_base(folder, *rest)
        base.model.language_model.register_forward_pre_hook(record, with_kwargs=True)
        return base

    monkeypatch.setattr(trainer, "load_base", watched)
    train(recipe(max_steps=1, gradient_accumulation_steps=1, per_device_train_batch_size=2, eval_dataset=None))
    assert len(rows) > 8, "answers before and after"
    assert max(rows) == 2


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant", "constant_with_warmup"])
def test_the_learning_rate_is_transformers_own(recipe: MakeRecipe, kind: str) -> None:
    from transformers import get_scheduler

    made = recipe(lr_scheduler_type=kind, warmup_ratio=0.1, learning_rate=1.0)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_scheduler(kind, optimizer, num_warmup_steps=2, num_training_steps=20)
    for step in range(20):
        assert learning_rate(made, step, 20) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


def test_steps_are_counted_as_transformers_does(recipe: MakeRecipe) -> None:
    made = recipe(max_steps=-1, num_train_epochs=1.5, gradient_accumulation_steps=4)
    assert total_steps(made, rows=40) == 5  # ceil(1.5 x 3 steps an epoch)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_sample_answers_are_logged_as_they_change_and_change_nothing(
    recipe: MakeRecipe, tmp_path: Path, checkpointing: bool
) -> None:
    keys: dict[str, Any] = {
        "max_steps": 6, "eval_strategy": "steps", "eval_steps": 2, "learning_rate": 1e-2, "lora_dropout": 0.1,
        "disable_gradient_checkpointing": not checkpointing,
    }  # fmt: skip
    plain = train(recipe(**keys, output_dir=str(tmp_path / "plain")))
    watched = train(recipe(**keys, output_dir=str(tmp_path / "watched"), sample_answers=3))
    assert (watched.loss, watched.eval_loss) == (plain.loss, plain.eval_loss)
    records = read_log(tmp_path / "watched" / "sample_answers.jsonl")
    assert [record["step"] for record in records] == [0, 2, 4, 6]
    first, last = records[0]["answers"], records[-1]["answers"]
    assert len(first) == 3
    assert all(Path(answer["images"][0]).is_file() and answer["question"] and answer["label"] for answer in first)
    assert [answer["answer"] for answer in first] != [answer["answer"] for answer in last]
    assert not (tmp_path / "plain" / "sample_answers.jsonl").exists()


def test_sample_answers_of_steps_that_are_done_again_are_replaced(recipe: MakeRecipe, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "sample_answers": 1}
    train(recipe(**keys, max_steps=4))
    log = tmp_path / "out" / "sample_answers.jsonl"
    with log.open("a") as file:
        file.write('{"step": 6, "answers": []}\n')  # of steps that a crash undid
    train(recipe(**keys, max_steps=8))
    assert [record["step"] for record in read_log(log)] == [0, 2, 4, 6, 8]
