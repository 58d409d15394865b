"""The training loop: recipe in, trained weights out, on one GPU, several, or none.

Gradients are normalised by the label tokens of the whole accumulated batch of all processes, so a short answer weighs
what its tokens weigh, whatever the accumulation.
"""

from __future__ import annotations

import json
import math
import shutil
import signal
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from finetune import checkpoint as checkpoints
from finetune.batches import Window, collate_train, epoch_batches, step_windows
from finetune.dataset import TrainingData, load_training_data
from finetune.errors import FinetuneError
from finetune.features import FrozenFeatures, TrainedVision
from finetune.model import (
    LabelLoss,
    checkpoint_activations,
    dropout,
    four_bit_layers,
    load_base,
    pick_device,
    pick_dtype,
)
from finetune.oom import out_of_memory
from finetune.optimizer import load_optimizer, make_optimizer
from finetune.outputs import environment, prepare_output
from finetune.parallel import World, distribute, no_sync, processes, whole
from finetune.recipe import Recipe, save_recipe
from finetune.report import write_training_report
from finetune.runlog import RunLog, clock, plot_loss, progress_bar
from finetune.samples import Sample, answer_samples
from finetune.schedule import learning_rate, steps_per_epoch, total_steps
from finetune.signals import stop_on_signals
from finetune.validation import validation_loss
from finetune.weights import make_trainable, restore_trained, save_trained, trained_state

FIGURES = "loss {task.fields[loss]:.4f}  lr {task.fields[lr]:.2e}  {task.fields[speed]:.0f} samples/s"
LINE_SECONDS = 30.0  # how often a run without a terminal says where it is
MAX_SKIPPED = 3  # steps without a finite gradient in a row that end the run


@dataclass(frozen=True)
class TrainResult:
    """What a run did.

    output_dir: the folder of the trained weights; steps: optimiser steps done in all; seconds: of this call, loading
    included; first_step_seconds: from the call to the end of its first step; processes: how many trained; samples:
    rows trained on in this call; samples_per_second: over the steps after the first; loss: mean of the last logged
    steps; eval_loss: of the weights that were kept, or None without validation rows; best_step: the step it is from;
    skipped_steps: steps without a finite gradient; peak_memory_gib: reserved on the fullest GPU, or None; interrupted:
    the signal that ended the run early.
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
    processes: int
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
    """Trains as the recipe says and writes the trained weights to output_dir. Raises FinetuneError.

    Under torchrun every process calls it, and the processes train together.
    """
    began = time.monotonic()
    console = console or Console(stderr=True, soft_wrap=True)
    recipe.require("dataset", "output_dir")
    with processes(recipe.ddp_timeout) as world:
        console.quiet = console.quiet or not world.main
        resume = world.on_main(lambda: prepare_output(recipe))
        data = world.together(lambda: load_training_data(recipe, console))
        try:
            run = world.together(lambda: _Run(recipe, world, data, console, resume))
            if resume is not None:
                console.print(f"Going on from {resume}.", highlight=False)
            return run.go(began)
        except torch.OutOfMemoryError:
            raise out_of_memory(recipe, data) from None


class _Run:
    """A training run: what is loaded once, and the loop over it."""

    def __init__(self, recipe: Recipe, world: World, data: TrainingData, console: Console, resume: Path | None) -> None:
        self.recipe, self.world, self.data, self.console = recipe, world, data, console
        self.output = Path(str(recipe.output_dir))
        self.device = pick_device()
        self.dtype, reason = pick_dtype(recipe, self.device)
        console.print(f"Compute dtype {reason}.", highlight=False)
        self.base = load_base(data.folder, recipe, self.device, self.dtype)
        self.quantised = len(four_bit_layers(self.base)) if recipe.quantization_bit == 4 else 0
        if self.quantised:
            kind = "NF4, double quantised" if recipe.double_quantization else "NF4"
            console.print(
                f"4-bit layers: {self.quantised} ({kind}); the vision tower and the projector stay as they are.",
                highlight=False,
            )
        self.model = make_trainable(self.base, recipe)
        self.identity = checkpoints.fingerprint(recipe, data.folder.fingerprint(), data.digest, world.size)
        saved = checkpoints.load_checkpoint(resume, self.identity) if resume else None
        if resume is not None:
            restore_trained(self.model, resume)
        keep_activations = recipe.disable_gradient_checkpointing
        if not (self.device.type == "cpu" if keep_activations is None else keep_activations):
            checkpoint_activations(self.base)
        self.trainable = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        console.print(
            f"{len(data.rows)} rows to train on, {len(data.validation)} to validate, {len(data.bank.paths)} images; "
            f"{self.trainable:,} trainable parameters"
            + (f"; {world.size} processes, {'FSDP' if recipe.fsdp else 'DDP'}." if world.size > 1 else "."),
            highlight=False,
        )
        self.loss = LabelLoss(self.base, recipe.neftune_noise_alpha or 0.0)
        unseen = any(not row.images for row in data.rows)
        self.parallel = distribute(self.loss, self.base, recipe, world, self.device, self.dtype, unseen)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(self.model, recipe, self.device, console)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.autocast = nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device.type, self.dtype)
        self.steps_per_epoch = steps_per_epoch(recipe, len(data.rows), world.size)
        self.total = total_steps(recipe, len(data.rows), world.size)
        self.images, self.held_out_images = self._images()
        self.state = State()
        torch.manual_seed(recipe.seed + world.rank)  # each process draws its own dropout
        if saved is not None:
            self._restore(saved)

    def _images(self) -> tuple[Any, Any]:
        """What turns the images of the training and of the validation rows into something for the model."""
        recipe, data, world = self.recipe, self.data, self.world
        if any(p.requires_grad for p in self.base.model.visual.parameters()):
            vision = TrainedVision(self.device, data.bank, data.processor)
            return vision, vision
        lengths = [len(row) for row in data.rows]
        size, seed, grouped = recipe.per_device_train_batch_size, recipe.seed, recipe.group_by_length
        batches = epoch_batches(lengths, size, seed, 0, grouped)
        mine = batches[world.rank :: world.size]
        others = [batch for n, batch in enumerate(batches) if n % world.size != world.rank]
        used = [i for batch in [*mine, *others] for row in batch for i in data.rows[row].images]
        again = self.total > self.steps_per_epoch
        held_out = [image for row in data.validation for image in row.images]
        return (
            FrozenFeatures(self.base, data.bank, data.processor, used, again, world.local_size),
            FrozenFeatures(self.base, data.bank, data.processor, held_out, True, world.local_size),
        )

    def go(self, began: float) -> TrainResult:
        """The loop, from the state's step to the last."""
        recipe, state, world = self.recipe, self.state, self.world
        if world.main:
            save_recipe(recipe, self.output / "recipe.yaml")
            surroundings = environment(self.device, self.data.folder, self.data.digest) | {"processes": world.size}
            (self.output / "environment.json").write_text(json.dumps(surroundings, indent=2) + "\n", encoding="utf-8")
        log = RunLog(self.output, recipe.report_to != "none", state.step) if world.main else None
        samples = tokens = in_a_row = first_samples = stop = 0
        saved_at = state.step
        first_step_seconds = speed = math.nan
        stepping = now = after_first = said = time.monotonic()
        windows = step_windows(self.data.rows, recipe, state.step, world.rank, world.size)
        with stop_on_signals() as stopped, progress_bar(self.console, "training", FIGURES) as progress:
            bar = progress.add_task(
                "training", total=self.total, completed=state.step, loss=math.nan, lr=0.0, speed=0.0
            )
            following = next(windows)
            while state.step < self.total and not stop and not self._stale():
                window, following = following, next(windows)
                lr = learning_rate(recipe, state.step, self.total)
                more = state.step + 1 < self.total
                loss, norm = self._step(window, lr, following if more else None)
                stop = int(world.total(len(stopped))[0])
                samples += window.samples
                tokens += window.tokens
                in_a_row = 0 if math.isfinite(norm) and math.isfinite(loss) else in_a_row + 1
                # A loss scale that is still coming down from its high start is no reason to stop.
                if in_a_row >= MAX_SKIPPED and not (self.scaler.is_enabled() and self.scaler.get_scale() > 1):
                    world.fail(
                        f"{MAX_SKIPPED} steps in a row had no finite gradient; the last one's rows are: "
                        f"{'; '.join(dict.fromkeys(window.sources))}. Lower learning_rate, or look at those rows."
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
                    if log:
                        log.write(self._record(lr, norm, now - stepping, samples, tokens))
                if self._evaluates(last):
                    self._evaluate()
                    if log:
                        record = {"current_steps": state.step, "total_steps": self.total, "eval_loss": state.eval_loss}
                        log.write(record)
                if state.step % recipe.save_steps == 0 and not last:
                    saved_at = self._save()
            if state.step != saved_at:
                self._save()
        if log:
            log.close()
        interrupted = (stopped[0] if stopped else int(signal.SIGTERM)) if stop else None
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
            processes=world.size,
            trainable_parameters=self.trainable,
            four_bit_layers=self.quantised,
            dropped_rows=self.data.dropped,
            skipped_steps=state.skipped,
            peak_memory_gib=max(world.gather(torch.cuda.max_memory_reserved(self.device) / 2**30)) if gpu else None,
            interrupted=interrupted,
        )
        if interrupted is None and world.main:
            text = json.dumps(asdict(result), indent=2) + "\n"
            (self.output / "train_results.json").write_text(text, encoding="utf-8")
            write_training_report(self.output, recipe, asdict(result), self._samples())
        self.images.close()
        self.held_out_images.close()
        return result

    def _step(self, window: Window, lr: float, following: Window | None) -> tuple[float, float]:
        """One optimiser step: (loss a label token, gradient norm before clipping), of all processes together.

        The images of the micro-batch after this one, at last of the `following` window, are decoded meanwhile.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["ratio"]
        mine = [collate_train(rows, self.device) for rows in window.mine]
        loss = 0.0
        for n, batch in enumerate(mine):
            self.images.prefetch(batch.images)  # first in line, if nothing fetched it before
            if n + 1 < len(mine):
                self.images.prefetch(mine[n + 1].images)
            elif following is not None:
                self.images.prefetch([image for row in following.mine[0] for image in row.images])
            images = self.images.get(batch.images)
            last = n + 1 == len(mine)
            share = 0.0 if last and window.idle else 1.0 / window.labels
            with no_sync(self.parallel, last):
                with self.autocast:
                    loss_sum = self.parallel(batch, images)
                # DDP and FSDP take the mean over the processes where the sum is wanted.
                self.scaler.scale(loss_sum * (share * self.world.size)).backward()
            loss += loss_sum.item() * share
        (loss,) = self.world.total(loss)
        self.scaler.unscale_(self.optimizer)
        total_norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.recipe.max_grad_norm or math.inf)
        norm = whole(total_norm).item()
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
        """Validates; keeps the weights if they are the best so far."""
        state, size = self.state, self.recipe.per_device_eval_batch_size
        dropout(self.model, False)
        self.loss.noisy = False
        with self.autocast:
            state.eval_loss = validation_loss(
                self.parallel, self.data.validation, self.held_out_images, size, self.device, self.world
            )
        self.loss.noisy = True
        dropout(self.model, True)
        if state.eval_loss < state.best_loss:
            state.best_loss, state.best_step, state.stale = state.eval_loss, state.step, 0
            if self.recipe.load_best_model_at_end:
                trained = trained_state(self.model)
                if self.world.main:
                    checkpoints.save_best(self.output, self.model, trained)
        else:
            state.stale += 1

    def _stale(self) -> bool:
        patience = self.recipe.early_stopping_steps
        return patience is not None and self.state.stale >= patience

    def _save(self) -> int:
        cuda = torch.cuda.get_rng_state() if self.device.type == "cuda" else None
        saved = {
            "state": asdict(self.state),
            "optimizer": whole(self.optimizer.state_dict()),
            "scaler": self.scaler.state_dict(),
            "rng": self.world.gather((torch.get_rng_state(), cuda)),
            "fingerprint": self.identity,
        }
        trained = trained_state(self.model)
        if self.world.main:
            keep = self.recipe.save_total_limit
            checkpoints.save_checkpoint(self.output, self.state.step, self.model, trained, saved, keep)
        return self.state.step

    def _restore(self, saved: dict[str, Any]) -> None:
        """Goes on from a checkpoint's state bit for bit."""
        load_optimizer(self.optimizer, saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])
        rng, cuda_rng = saved["rng"][self.world.rank]
        torch.set_rng_state(rng)
        if cuda_rng is not None:
            torch.cuda.set_rng_state(cuda_rng)
        self.state = State(**saved["state"])

    def _finish(self) -> None:
        """Writes the weights that are kept, and the curve."""
        trained = trained_state(self.model)
        if not self.world.main:
            return
        best = self.output / checkpoints.BEST
        if self.recipe.load_best_model_at_end and self.state.best_step:
            if not best.is_dir():
                raise FinetuneError(
                    f"{best} is gone, so the best weights cannot be kept; the last checkpoint is whole."
                )
            for file in best.iterdir():
                shutil.copyfile(file, self.output / file.name)
        else:
            save_trained(self.model, trained, self.output)
        if self.recipe.plot_loss:
            plot_loss(self.output, f"{self.data.folder.name}: {self.recipe.dataset}")

    def _samples(self) -> list[Sample]:
        """Answers before and after, from the weights that are kept; none where FSDP has shared the model out."""
        if self.recipe.fsdp:
            return []
        restore_trained(self.model, self.output)
        self.optimizer.state.clear()
        try:
            images = self.held_out_images if self.data.validation else self.images
            return answer_samples(self.model, self.base, self.data, images, self.dtype, self.recipe.max_new_tokens)
        except torch.OutOfMemoryError:
            return []

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
            "elapsed_time": clock(elapsed),
        }
        if self.device.type == "cuda":
            record["vram_reserved"] = round(torch.cuda.max_memory_reserved(self.device) / 2**30, 2)
        return record
