"""The training loop: recipe in, adapter out.

Gradients are normalised by the label tokens of the whole accumulated batch, so a short answer weighs what its tokens
weigh, whatever the accumulation.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from finetune import checkpoint as checkpoints
from finetune.batches import collate_train, epoch_batches
from finetune.dataset import TrainingData, load_training_data
from finetune.errors import FinetuneError
from finetune.features import FrozenFeatures
from finetune.model import (
    checkpoint_activations,
    dropout,
    four_bit_layers,
    label_loss,
    load_base,
    pick_device,
    pick_dtype,
)
from finetune.outputs import environment, prepare_output
from finetune.recipe import Recipe, save_recipe
from finetune.report import write_training_report
from finetune.runlog import RunLog, plot_loss, progress_bar
from finetune.schedule import learning_rate, total_steps
from finetune.signals import stop_on_signals
from finetune.template import Encoded
from finetune.weights import add_adapters, load_adapter_weights, save_adapter

FIGURES = "loss {task.fields[loss]:.4f}  lr {task.fields[lr]:.2e}  {task.fields[speed]:.0f} samples/s"
LINE_SECONDS = 30.0  # how often a run without a terminal says where it is
MAX_SKIPPED = 3  # steps without a finite gradient in a row that end the run


@dataclass(frozen=True)
class TrainResult:
    """What a run did.

    output_dir: the adapter's folder; steps: optimiser steps done in all; seconds: of this call, loading included;
    first_step_seconds: from the call to the end of its first step; samples: rows trained on in this call;
    samples_per_second: over the steps after the first; loss: mean of the last logged steps; eval_loss: of the adapter
    that was kept, or None without validation rows; best_step: the step it is from; skipped_steps: steps without a
    finite gradient; peak_memory_gib: reserved on the GPU, or None; interrupted: the signal that ended the run early.
    """

    output_dir: str
    steps: int
    total_steps: int
    seconds: float
    first_step_seconds: float
    samples: int
    samples_per_second: float
    loss: float
    eval_loss: float | None
    best_step: int | None
    trainable_parameters: int
    four_bit_layers: int
    dropped_rows: int
    skipped_steps: int
    peak_memory_gib: float | None
    interrupted: int | None


@dataclass
class State:
    """What changes from step to step besides the weights; saved in every checkpoint."""

    step: int = 0
    skipped: int = 0
    recent: list[float] = field(default_factory=list)  # losses since the last log line
    loss: float = math.nan
    eval_loss: float = math.nan
    best_loss: float = math.inf
    best_step: int = 0
    stale: int = 0  # evaluations since the best one


def train(recipe: Recipe, console: Console | None = None) -> TrainResult:
    """Trains an adapter as the recipe says and writes it to output_dir. Raises FinetuneError."""
    began = time.monotonic()
    console = console or Console(stderr=True, soft_wrap=True)
    recipe.require("dataset", "output_dir")
    resume = prepare_output(recipe)
    data = load_training_data(recipe, console)
    run = _Run(recipe, data, console)
    if resume is not None:
        run.restore(resume)
        console.print(f"Going on from {resume}.", highlight=False)
    return run.go(began)


class _Run:
    """A training run: what is loaded once, and the loop over it."""

    def __init__(self, recipe: Recipe, data: TrainingData, console: Console) -> None:
        self.recipe, self.data, self.console = recipe, data, console
        self.output = Path(str(recipe.output_dir))
        self.device = pick_device()
        dtype, reason = pick_dtype(recipe, self.device)
        console.print(f"Compute dtype {reason}.", highlight=False)
        self.base = load_base(data.folder, recipe, self.device, dtype)
        self.quantised = len(four_bit_layers(self.base)) if recipe.quantization_bit == 4 else 0
        if self.quantised:
            kind = "NF4, double quantised" if recipe.double_quantization else "NF4"
            console.print(
                f"4-bit layers: {self.quantised} ({kind}); the vision tower and the projector stay as they are.",
                highlight=False,
            )
        self.model = add_adapters(self.base, recipe)
        keep_activations = recipe.disable_gradient_checkpointing
        if not (self.device.type == "cpu" if keep_activations is None else keep_activations):
            checkpoint_activations(self.base)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.trainable = sum(p.numel() for p in self.parameters)
        console.print(
            f"{len(data.rows)} rows to train on, {len(data.validation)} to validate, {len(data.bank.paths)} images; "
            f"{self.trainable:,} trainable parameters.",
            highlight=False,
        )
        fast = [p for name, p in self.model.named_parameters() if p.requires_grad and ".lora_B." in name]
        slow = [p for name, p in self.model.named_parameters() if p.requires_grad and ".lora_B." not in name]
        self.optimizer = torch.optim.AdamW(
            [{"params": slow, "ratio": 1.0}, {"params": fast, "ratio": recipe.loraplus_lr_ratio or 1.0}],
            lr=recipe.learning_rate,
            betas=(recipe.adam_beta1, recipe.adam_beta2),
            eps=recipe.adam_epsilon,
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=dtype == torch.float16)
        self.autocast = nullcontext() if dtype == torch.float32 else torch.autocast(self.device.type, dtype)
        self.lengths = [len(row) for row in data.rows]
        self.per_epoch = math.ceil(len(data.rows) / recipe.per_device_train_batch_size)
        self.steps_per_epoch = math.ceil(self.per_epoch / recipe.gradient_accumulation_steps)
        self.total = total_steps(recipe, self.per_epoch)
        used = [image for batch in self._epoch(0) for row in batch for image in row.images]
        self.features = FrozenFeatures(self.base, data.bank, data.processor, used, self.total > self.steps_per_epoch)
        held_out = [image for row in data.validation for image in row.images]
        self.held_out_features = FrozenFeatures(self.base, data.bank, data.processor, held_out, True)
        self.identity = checkpoints.fingerprint(recipe, data.folder.fingerprint(), data.digest)
        self.state = State()
        torch.manual_seed(recipe.seed)

    def go(self, began: float) -> TrainResult:
        """The loop, from the state's step to the last."""
        recipe, state = self.recipe, self.state
        save_recipe(recipe, self.output / "recipe.yaml")
        surroundings = environment(self.device, self.data.folder, self.data.digest)
        (self.output / "environment.json").write_text(json.dumps(surroundings, indent=2) + "\n", encoding="utf-8")
        log = RunLog(self.output, recipe.report_to != "none", state.step)
        samples = tokens = in_a_row = first_samples = 0
        saved_at = state.step
        first_step_seconds = speed = math.nan
        stepping = now = after_first = said = time.monotonic()
        batches = self._batches()
        with stop_on_signals() as stopped, progress_bar(self.console, "training", FIGURES) as progress:
            bar = progress.add_task(
                "training", total=self.total, completed=state.step, loss=math.nan, lr=0.0, speed=0.0
            )
            following = next(batches)
            while state.step < self.total and not stopped and not self._stale():
                rows, following = following, next(batches)
                lr = learning_rate(recipe, state.step, self.total)
                more = state.step + 1 < self.total
                loss, norm = self._step(rows, lr, following[0] if more else [])
                samples += sum(map(len, rows))
                tokens += sum(len(row) for batch in rows for row in batch)
                in_a_row = 0 if math.isfinite(norm) and math.isfinite(loss) else in_a_row + 1
                # A loss scale that is still coming down from its high start is no reason to stop.
                if in_a_row >= MAX_SKIPPED and not (self.scaler.is_enabled() and self.scaler.get_scale() > 1):
                    where = "; ".join(dict.fromkeys(row.source for batch in rows for row in batch))
                    raise FinetuneError(
                        f"{MAX_SKIPPED} steps in a row had no finite gradient; the last one's rows are: {where}. "
                        "Lower learning_rate, or look at those rows."
                    )
                state.step += 1
                now = time.monotonic()
                if math.isnan(first_step_seconds):
                    first_step_seconds, after_first, first_samples = now - began, now, samples
                speed = (samples - first_samples) / max(1e-9, now - after_first)
                progress.update(bar, completed=state.step, loss=loss, lr=lr, speed=speed)
                if not self.console.is_terminal and now - said >= LINE_SECONDS:  # a log file shows no moving bar
                    said = now
                    self.console.print(
                        f"step {state.step}/{self.total}  loss {loss:.4f}  lr {lr:.2e}  {speed:.0f} samples/s",
                        highlight=False,
                    )
                last = state.step == self.total
                if (state.step % recipe.logging_steps == 0 or last) and state.recent:
                    state.loss, state.recent = sum(state.recent) / len(state.recent), []
                    elapsed = now - stepping
                    log.write(self._record(lr, norm, elapsed, samples, tokens))
                if self._evaluates(last):
                    self._evaluate()
                    log.write({"current_steps": state.step, "total_steps": self.total, "eval_loss": state.eval_loss})
                if state.step % recipe.save_steps == 0 and not last:
                    saved_at = self._save()
            if state.step != saved_at:
                self._save()
        log.close()
        self.features.close()
        self.held_out_features.close()
        interrupted = stopped[0] if stopped else None
        if interrupted is None:
            self._finish()
        if state.skipped:
            self.console.print(f"[yellow]Warning:[/] {state.skipped} steps had no finite gradient and were skipped.")
        best = recipe.load_best_model_at_end and state.best_step
        gpu = self.device.type == "cuda"
        result = TrainResult(
            output_dir=str(self.output),
            steps=state.step,
            total_steps=self.total,
            seconds=time.monotonic() - began,
            first_step_seconds=first_step_seconds,
            samples=samples,
            samples_per_second=speed if speed > 0 else samples / max(1e-9, now - stepping),
            loss=state.loss,
            eval_loss=None if math.isnan(state.eval_loss) else state.best_loss if best else state.eval_loss,
            best_step=state.best_step or None,
            trainable_parameters=self.trainable,
            four_bit_layers=self.quantised,
            dropped_rows=self.data.dropped,
            skipped_steps=state.skipped,
            peak_memory_gib=torch.cuda.max_memory_reserved(self.device) / 2**30 if gpu else None,
            interrupted=interrupted,
        )
        if interrupted is None:
            text = json.dumps(asdict(result), indent=2) + "\n"
            (self.output / "train_results.json").write_text(text, encoding="utf-8")
            write_training_report(self.output, recipe, asdict(result))
        return result

    def restore(self, path: Path) -> None:
        """Goes on from a checkpoint bit for bit. Raises FinetuneError."""
        saved = checkpoints.load_checkpoint(path, self.identity)
        load_adapter_weights(self.model, path)
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])
        torch.set_rng_state(saved["rng"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(saved["cuda_rng"])
        self.state = State(**saved["state"])

    def _step(self, rows: list[list[Encoded]], lr: float, following: list[Encoded]) -> tuple[float, float]:
        """One optimiser step on the micro-batches `rows`: (loss a label token, gradient norm before clipping).

        `following` is the micro-batch after them, whose images are decoded meanwhile.
        """
        window = [collate_train(batch, self.device) for batch in rows]
        labels = sum(len(batch.labels) for batch in window)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["ratio"]
        loss = 0.0
        for batch, next_rows in zip(window, [*rows[1:], following], strict=True):
            self.features.prefetch(batch.images)  # first in line, if nothing fetched it before
            self.features.prefetch([image for row in next_rows for image in row.images])
            features = self.features.get(batch.images)
            with self.autocast:
                loss_sum = label_loss(self.base, batch, features)
            self.scaler.scale(loss_sum / labels).backward()
            loss += loss_sum.item() / labels
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.recipe.max_grad_norm or math.inf).item()
        if math.isfinite(norm) and math.isfinite(loss):
            self.scaler.step(self.optimizer)
            self.state.recent.append(loss)
        else:
            self.state.skipped += 1
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return loss, norm

    def _evaluates(self, last: bool) -> bool:
        recipe, step = self.recipe, self.state.step
        if not self.data.validation:
            return False
        if last:
            return True
        every = recipe.eval_steps or recipe.logging_steps
        if recipe.eval_strategy == "epoch":
            every = self.steps_per_epoch
        return recipe.eval_strategy != "no" and step > recipe.eval_delay and step % every == 0

    def _evaluate(self) -> None:
        """The loss a label token on the validation rows; keeps the adapter if it is the best so far."""
        state, loss, labels = self.state, 0.0, 0
        rows = self.data.validation
        dropout(self.model, False)
        with torch.no_grad(), self.autocast:
            for start in range(0, len(rows), self.recipe.per_device_eval_batch_size):
                chosen = rows[start : start + self.recipe.per_device_eval_batch_size]
                batch = collate_train(chosen, self.device)
                loss += label_loss(self.base, batch, self.held_out_features.get(batch.images)).item()
                labels += len(batch.labels)
        dropout(self.model, True)
        state.eval_loss = loss / labels
        if state.eval_loss < state.best_loss:
            state.best_loss, state.best_step, state.stale = state.eval_loss, state.step, 0
            if self.recipe.load_best_model_at_end:
                checkpoints.save_best(self.output, self.model)
        else:
            state.stale += 1

    def _stale(self) -> bool:
        patience = self.recipe.early_stopping_steps
        return patience is not None and self.state.stale >= patience

    def _save(self) -> int:
        saved = {
            "state": asdict(self.state),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state() if self.device.type == "cuda" else None,
            "fingerprint": self.identity,
        }
        checkpoints.save_checkpoint(self.output, self.state.step, self.model, saved, self.recipe.save_total_limit)
        return self.state.step

    def _finish(self) -> None:
        """Writes the adapter that is kept, and the curve."""
        best = self.output / checkpoints.BEST
        if self.recipe.load_best_model_at_end and self.state.best_step:
            if not best.is_dir():
                raise FinetuneError(
                    f"{best} is gone, so the best adapter cannot be kept; the last checkpoint is whole."
                )
            for file in best.iterdir():
                shutil.copyfile(file, self.output / file.name)
        else:
            save_adapter(self.model, self.output)
        if self.recipe.plot_loss:
            plot_loss(self.output, f"{self.data.folder.name}: {self.recipe.dataset}")

    def _record(self, lr: float, norm: float, elapsed: float, samples: int, tokens: int) -> dict[str, Any]:
        """A line of trainer_log.jsonl; throughput is in tokens a second."""
        state = self.state
        record = {
            "current_steps": state.step,
            "total_steps": self.total,
            "loss": round(state.loss, 6),
            "lr": lr,
            "grad_norm": round(norm, 6),
            "epoch": round(state.step / self.steps_per_epoch, 4),
            "percentage": round(100 * state.step / self.total, 2),
            "samples_per_second": round(samples / max(1e-9, elapsed), 2),
            "throughput": round(tokens / max(1e-9, elapsed), 2),
            "elapsed_time": _clock(elapsed),
        }
        if self.device.type == "cuda":
            record["vram_reserved"] = round(torch.cuda.max_memory_reserved(self.device) / 2**30, 2)
        return record

    def _epoch(self, epoch: int) -> list[list[Encoded]]:
        recipe = self.recipe
        size, grouped = recipe.per_device_train_batch_size, recipe.group_by_length
        order = epoch_batches(self.lengths, size, recipe.seed, epoch, grouped)
        return [[self.data.rows[index] for index in batch] for batch in order]

    def _batches(self) -> Iterator[list[list[Encoded]]]:
        """The micro-batches of each optimiser step from the state's step on, without end."""
        epoch, at = divmod(self.state.step, self.steps_per_epoch)
        accumulate = self.recipe.gradient_accumulation_steps
        while True:
            batches = self._epoch(epoch)
            for first in range(at * accumulate, len(batches), accumulate):
                yield batches[first : first + accumulate]
            epoch, at = epoch + 1, 0


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02}"
