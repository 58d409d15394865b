"""The training loop: recipe in, adapter out.

One flat loop. Gradients are normalised by the label tokens of the whole accumulated batch, so a short answer weighs
what its tokens weigh, whatever the accumulation.
"""

from __future__ import annotations

import json
import math
import platform
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from finetune import checkpoint as checkpoints
from finetune.batches import collate_train, epoch_batches
from finetune.errors import FinetuneError
from finetune.features import FrozenFeatures
from finetune.images import ImageBank, pixel_limits
from finetune.model import (
    add_adapters,
    four_bit_layers,
    label_loss,
    load_base,
    old_names_allowed,
    open_base,
    pick_device,
    pick_dtype,
    save_adapter,
)
from finetune.processor import load_processor
from finetune.recipe import Recipe, save_recipe
from finetune.rows import load_rows
from finetune.runlog import RunLog, plot_loss
from finetune.schedule import learning_rate, total_steps
from finetune.template import ChatEncoder, Encoded, prove

MAX_SKIPPED = 3  # steps without a finite gradient in a row that end the run


@dataclass(frozen=True)
class TrainResult:
    """What a run did.

    output_dir: the adapter's folder; steps: optimiser steps done in all; seconds: of this call, loading included;
    first_step_seconds: from the call to the end of its first step; samples: rows trained on in this call;
    samples_per_second: over the steps alone; loss: mean of the last logged steps; skipped_steps: steps without a finite
    gradient; interrupted: the signal that ended the run early, or None.
    """

    output_dir: str
    steps: int
    total_steps: int
    seconds: float
    first_step_seconds: float
    samples: int
    samples_per_second: float
    loss: float
    trainable_parameters: int
    four_bit_layers: int
    dropped_rows: int
    skipped_steps: int
    interrupted: int | None


def train(recipe: Recipe, console: Console | None = None) -> TrainResult:
    """Trains an adapter as the recipe says and writes it to output_dir. Raises FinetuneError."""
    began = time.monotonic()
    console = console or Console(stderr=True, soft_wrap=True)
    recipe.require("dataset", "output_dir")
    output = Path(str(recipe.output_dir))
    resume = _prepare_output(recipe, output)

    folder = open_base(recipe)
    limits = pixel_limits(folder, recipe)
    data = load_rows(str(recipe.dataset), recipe)
    device = pick_device()
    dtype, reason = pick_dtype(recipe, device)
    console.print(f"Compute dtype {reason}.", highlight=False)

    processor = load_processor(folder, limits)
    bank = ImageBank(limits)
    encoded = ChatEncoder(folder, processor, bank).encode(data.rows)
    prove(data.rows[:2], encoded[:2], processor, bank)
    rows = [row for row in encoded if len(row) <= recipe.cutoff_len]
    dropped = len(encoded) - len(rows)
    if dropped:
        longest = max(len(row) for row in encoded)
        console.print(f"[yellow]{dropped} of {len(encoded)} rows are longer than cutoff_len {recipe.cutoff_len} "
                      f"(the longest has {longest} tokens) and are left out.[/]", highlight=False)  # fmt: skip
    if not rows:
        raise FinetuneError(f"Every row is longer than cutoff_len {recipe.cutoff_len}: raise it, or shrink the images.")

    base = load_base(folder, recipe, device, dtype)
    quantised = len(four_bit_layers(base)) if recipe.quantization_bit == 4 else 0
    if quantised:
        console.print(f"4-bit layers: {quantised} (NF4{', double quantised' * recipe.double_quantization}); "
                      "the vision tower and the projector stay as they are.", highlight=False)  # fmt: skip
    model = add_adapters(base, recipe)
    keep_activations = recipe.disable_gradient_checkpointing
    if keep_activations is None:
        keep_activations = device.type == "cpu"
    if not keep_activations:
        with old_names_allowed():
            base.model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
    parameters = [p for p in model.parameters() if p.requires_grad]
    trainable = sum(p.numel() for p in parameters)
    console.print(f"{len(rows)} rows, {len(bank.paths)} images; {trainable:,} trainable parameters.", highlight=False)

    size, accumulate = recipe.per_device_train_batch_size, recipe.gradient_accumulation_steps
    lengths = [len(row) for row in rows]
    per_epoch = math.ceil(len(rows) / size)
    total = total_steps(recipe, per_epoch)
    optimizer = torch.optim.AdamW(
        parameters,
        lr=recipe.learning_rate,
        betas=(recipe.adam_beta1, recipe.adam_beta2),
        eps=recipe.adam_epsilon,
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    autocast = nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)
    first_order = epoch_batches(lengths, size, recipe.seed, 0, recipe.group_by_length)
    order = [image for batch in first_order for index in batch for image in rows[index].images]
    if total > math.ceil(per_epoch / accumulate):
        order += order[:1]  # later epochs use the images again: worth keeping
    features = FrozenFeatures(base, bank, processor, order)

    identity = checkpoints.fingerprint(recipe, folder.fingerprint(), data.digest)
    step, skipped, recent = 0, 0, []
    torch.manual_seed(recipe.seed)
    if resume is not None:
        state = checkpoints.load_checkpoint(resume, identity)
        checkpoints.load_adapter_weights(model, resume)
        optimizer.load_state_dict(state["optimizer"])
        scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["rng"])
        if device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"])
        step, skipped, recent = state["step"], state["skipped"], state["recent"]
        console.print(f"Going on from {resume}.", highlight=False)
    save_recipe(recipe, output / "recipe.yaml")
    (output / "environment.json").write_text(json.dumps(_environment(device, folder, data.digest), indent=2) + "\n")
    log = RunLog(output, recipe.report_to != "none", step)

    def state_now() -> dict[str, Any]:
        return {
            "step": step,
            "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state() if device.type == "cuda" else None,
            "skipped": skipped,
            "recent": recent,
            "fingerprint": identity,
        }

    in_a_row, samples, loss, saved_at = 0, 0, math.nan, step if resume is not None else -1
    first_step_seconds = math.nan
    stepping = time.monotonic()
    batches = _batches_from(rows, lengths, recipe, per_epoch, step)
    with _stop_on_signals() as stopped, _progress(console, recipe) as progress:
        bar = progress.add_task("training", total=total, completed=step, loss=math.nan, lr=0.0, speed=0.0)
        while step < total and not stopped:
            window = [collate_train(chosen, device) for chosen in next(batches)]
            tokens = sum(len(batch.labels) for batch in window)
            lr = learning_rate(recipe, step, total)
            for group in optimizer.param_groups:
                group["lr"] = lr
            step_loss = 0.0
            for batch in window:
                with autocast:
                    loss_sum = label_loss(base, batch, features.get(batch.images))
                scaler.scale(loss_sum / tokens).backward()
                step_loss += loss_sum.item() / tokens
                samples += len(batch.rows)
            scaler.unscale_(optimizer)
            norm = torch.nn.utils.clip_grad_norm_(parameters, recipe.max_grad_norm or math.inf).item()
            if math.isfinite(norm) and math.isfinite(step_loss):
                scaler.step(optimizer)
                in_a_row = 0
                recent.append(step_loss)
            else:
                skipped, in_a_row = skipped + 1, in_a_row + 1
                if in_a_row == MAX_SKIPPED and not (scaler.is_enabled() and scaler.get_scale() > 1):
                    where = "; ".join(dict.fromkeys(source for batch in window for source in batch.rows))
                    raise FinetuneError(
                        f"{MAX_SKIPPED} steps in a row had no finite gradient; the last one's rows are: {where}. "
                        "Lower learning_rate, or look at those rows."
                    )
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            now = time.monotonic()
            if math.isnan(first_step_seconds):
                first_step_seconds, after_first, first_samples = now - began, now, samples
            speed = (samples - first_samples) / max(1e-9, now - after_first)
            progress.update(bar, completed=step, loss=step_loss, lr=lr, speed=speed)
            if (step % recipe.logging_steps == 0 or step == total) and recent:
                loss, recent = sum(recent) / len(recent), []
                elapsed = now - stepping
                remaining = elapsed / max(1, samples) * size * accumulate * (total - step)
                log.write({
                    "current_steps": step, "total_steps": total, "loss": round(loss, 6), "lr": lr,
                    "grad_norm": round(norm, 6), "epoch": round(step * accumulate / per_epoch, 4),
                    "percentage": round(100 * step / total, 2), "throughput": round(speed, 2),
                    "elapsed_time": _clock(elapsed), "remaining_time": _clock(remaining),
                })  # fmt: skip
            if step % recipe.save_steps == 0 and step < total:
                saved_at = step
                checkpoints.save_checkpoint(output, step, model, state_now(), recipe.save_total_limit)
        if step != saved_at:
            checkpoints.save_checkpoint(output, step, model, state_now(), recipe.save_total_limit)
    log.close()
    features.close()
    if skipped:
        console.print(f"[yellow]{skipped} steps had no finite gradient and were skipped.[/]")
    interrupted = stopped[0] if stopped else None
    if interrupted is None:
        save_adapter(model, output)
    if recipe.plot_loss:
        plot_loss(output, f"{folder.name}: {recipe.dataset}")
    ended = time.monotonic()
    result = TrainResult(
        output_dir=str(output),
        steps=step,
        total_steps=total,
        seconds=ended - began,
        first_step_seconds=first_step_seconds,
        samples=samples,
        samples_per_second=samples / max(1e-9, now - stepping) if samples else 0.0,
        loss=loss,
        trainable_parameters=trainable,
        four_bit_layers=quantised,
        dropped_rows=dropped,
        skipped_steps=skipped,
        interrupted=interrupted,
    )
    if interrupted is None:
        (output / "train_results.json").write_text(json.dumps(asdict(result), indent=2) + "\n", encoding="utf-8")
    return result


def _prepare_output(recipe: Recipe, output: Path) -> Path | None:
    """Makes or empties output_dir; the checkpoint to go on from, or None. Raises FinetuneError."""
    wish = recipe.resume_from_checkpoint
    last = checkpoints.last_checkpoint(output)
    if isinstance(wish, str):
        return Path(wish)
    if wish is True:
        if last is None:
            raise FinetuneError(f"resume_from_checkpoint is true but {output} has no checkpoint.")
        return last
    if wish is None and last is not None and not recipe.overwrite_output_dir:
        return last
    if output.exists() and not output.is_dir():
        raise FinetuneError(f"output_dir: {output} is a file.")
    if output.exists() and any(output.iterdir()):
        if not recipe.overwrite_output_dir:
            raise FinetuneError(
                f"output_dir: {output} is not empty; set overwrite_output_dir: true, or choose another folder."
            )
        for old in [*checkpoints.checkpoints(output), output / "runs"]:
            shutil.rmtree(old, ignore_errors=True)
        for name in ("adapter_model.safetensors", "adapter_config.json", "trainer_log.jsonl", "train_results.json"):
            (output / name).unlink(missing_ok=True)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FinetuneError(f"output_dir: {output} cannot be made: {error}.") from None
    return None


def _batches_from(
    rows: list[Encoded], lengths: list[int], recipe: Recipe, per_epoch: int, step: int
) -> Iterator[list[list[Encoded]]]:
    """The micro-batches of each optimiser step from `step` on, without end."""
    per_step = recipe.gradient_accumulation_steps
    steps_per_epoch = math.ceil(per_epoch / per_step)
    while True:
        epoch, at = divmod(step, steps_per_epoch)
        batches = epoch_batches(lengths, recipe.per_device_train_batch_size, recipe.seed, epoch, recipe.group_by_length)
        for first in range(at * per_step, len(batches), per_step):
            yield [[rows[index] for index in batch] for batch in batches[first : first + per_step]]
            step += 1


@contextmanager
def _stop_on_signals() -> Iterator[list[int]]:
    """A list that gets the number of a SIGINT or SIGTERM; the step that is running ends first."""
    stopped: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, lambda number, frame: stopped.append(number))
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _progress(console: Console, recipe: Recipe) -> Progress:
    return Progress(
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}  lr {task.fields[lr]:.2e}  {task.fields[speed]:.0f} samples/s"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=console,
        refresh_per_second=4,
    )


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02}"


def _environment(device: torch.device, folder: Any, data: str) -> dict[str, Any]:
    from importlib.metadata import PackageNotFoundError, version

    def installed(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    packages = ("lensmith", "torch", "transformers", "peft", "bitsandbytes", "accelerate", "safetensors")
    return {
        "python": platform.python_version(),
        "packages": {package: installed(package) for package in packages},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "base_model": str(folder.path),
        "base_fingerprint": folder.fingerprint(),
        "data_sha256": data,
    }
