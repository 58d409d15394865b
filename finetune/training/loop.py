"""Signals that end a run between two steps."""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console

from finetune.recipe.load import save_recipe
from finetune.recipe.schema import Recipe
from finetune.reporting.plots import plot_loss
from finetune.reporting.progress import progress_bar
from finetune.reporting.runlog import RunLog, clock
from finetune.reporting.training_report import write_training_report
from finetune.training.dataset import load_training_data
from finetune.training.oom import out_of_memory
from finetune.training.optim import learning_rate
from finetune.training.order import step_windows
from finetune.training.outputs import environment, prepare_output
from finetune.training.parallel import processes
from finetune.training.trainer import Trainer


@contextmanager
def stop_on_signals() -> Iterator[list[int]]:
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


def train(recipe: Recipe, console: Console | None = None) -> TrainResult:
    """Trains as the recipe says and writes the trained weights to output_dir. Raises FinetuneError.

    Under torchrun every process calls it, and the processes train together.
    """
    began = time.monotonic()
    console = console or Console(stderr=True, soft_wrap=True)
    recipe.require("dataset", "output_dir")
    with processes(recipe.ddp_timeout) as world:
        console.quiet = console.quiet or not world.main
        resume = world.run_on_main_rank(lambda: prepare_output(recipe))
        data = world.run_on_all_ranks(lambda: load_training_data(recipe, console))
        try:
            trainer = world.run_on_all_ranks(lambda: Trainer(recipe, world, data, console, resume))
            if resume is not None:
                console.print(f"Going on from {resume}.", highlight=False)
            return _Loop(trainer).go(began)
        except torch.OutOfMemoryError:
            raise out_of_memory(recipe, data) from None


class _Loop:
    """The steps of a run, and what happens between them: records, validation, checkpoints, the end."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.recipe, self.world, self.data = trainer, trainer.recipe, trainer.world, trainer.data
        self.console, self.output, self.state = trainer.console, trainer.output, trainer.state

    def go(self, began: float) -> TrainResult:
        """The loop, from the state's step to the last."""
        recipe, state, world = self.recipe, self.state, self.world
        if world.main:
            save_recipe(recipe, self.output / "recipe.yaml")
            surroundings = environment(self.trainer.device, self.data.folder, self.data.digest) | {
                "processes": world.size
            }
            (self.output / "environment.json").write_text(json.dumps(surroundings, indent=2) + "\n", encoding="utf-8")
        log = RunLog(self.output, recipe.report_to != "none", state.step) if world.main else None
        samples = tokens = in_a_row = first_samples = stop = 0
        saved_at = state.step
        first_step_seconds = speed = math.nan
        stepping = now = after_first = said = time.monotonic()
        windows = step_windows(self.data.rows, recipe, state.step, world.rank, world.size)
        with stop_on_signals() as stopped, progress_bar(self.console, "training", FIGURES) as progress:
            bar = progress.add_task(
                "training", total=self.trainer.total, completed=state.step, loss=math.nan, lr=0.0, speed=0.0
            )
            following = next(windows)
            while state.step < self.trainer.total and not stop and not self._stale():
                window, following = following, next(windows)
                lr = learning_rate(recipe, state.step, self.trainer.total)
                more = state.step + 1 < self.trainer.total
                loss, norm = self.trainer.step(window, lr, following if more else None)
                stop = int(world.sum(len(stopped))[0])
                samples += window.samples
                tokens += window.tokens
                in_a_row = 0 if math.isfinite(norm) and math.isfinite(loss) else in_a_row + 1
                # A loss scale that is still coming down from its high start is no reason to stop.
                if in_a_row >= MAX_SKIPPED and not (
                    self.trainer.scaler.is_enabled() and self.trainer.scaler.get_scale() > 1
                ):
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
                        f"step {state.step}/{self.trainer.total}  loss {loss:.4f}  lr {lr:.2e}  {speed:.0f} samples/s",
                        highlight=False,
                    )
                last = state.step == self.trainer.total
                if (state.step % recipe.logging_steps == 0 or last) and state.recent:
                    state.loss, state.recent = sum(state.recent) / len(state.recent), []
                    if log:
                        log.write(self._record(lr, norm, now - stepping, samples, tokens))
                if self._evaluates(last):
                    self.trainer.validate()
                    if log:
                        record = {
                            "current_steps": state.step,
                            "total_steps": self.trainer.total,
                            "eval_loss": state.eval_loss,
                        }
                        log.write(record)
                if state.step % recipe.save_steps == 0 and not last:
                    saved_at = self.trainer.save()
            if state.step != saved_at:
                self.trainer.save()
        if log:
            log.close()
        interrupted = (stopped[0] if stopped else int(signal.SIGTERM)) if stop else None
        if interrupted is None:
            self._finish()
        if state.skipped:
            self.console.print(f"[yellow]Warning:[/] {state.skipped} steps had no finite gradient and were skipped.")
        best = recipe.load_best_model_at_end and state.best_step
        gpu = self.trainer.device.type == "cuda"
        result = TrainResult(
            output_dir=str(self.output),
            steps=state.step,
            total_steps=self.trainer.total,
            seconds=time.monotonic() - began,
            first_step_seconds=first_step_seconds,
            samples=samples,
            samples_per_second=speed if speed > 0 else samples / max(1e-9, now - stepping),
            loss=state.loss,
            eval_loss=None if math.isnan(state.eval_loss) else state.best_loss if best else state.eval_loss,
            best_step=state.best_step or None,
            processes=world.size,
            trainable_parameters=self.trainer.trainable,
            four_bit_layers=self.trainer.quantised,
            dropped_rows=self.data.dropped,
            skipped_steps=state.skipped,
            peak_memory_gib=max(world.gather(torch.cuda.max_memory_reserved(self.trainer.device) / 2**30))
            if gpu
            else None,
            interrupted=interrupted,
        )
        if interrupted is None and world.main:
            text = json.dumps(asdict(result), indent=2) + "\n"
            (self.output / "train_results.json").write_text(text, encoding="utf-8")
            write_training_report(self.output, recipe, asdict(result), self.trainer.samples())
        self.trainer.close()
        return result

    def _evaluates(self, last: bool) -> bool:
        recipe, step = self.recipe, self.state.step
        if not self.data.validation:
            return False
        if last:
            return True
        every = recipe.eval_steps or recipe.logging_steps
        if recipe.eval_strategy == "epoch":
            every = self.trainer.steps_per_epoch
        return recipe.eval_strategy != "no" and step > recipe.eval_delay and step % every == 0

    def _stale(self) -> bool:
        patience = self.recipe.early_stopping_steps
        return patience is not None and self.state.stale >= patience

    def _finish(self) -> None:
        """Writes the weights that are kept, and the curve."""
        self.trainer.write_final()
        if self.world.main and self.recipe.plot_loss:
            plot_loss(self.output, f"{self.data.folder.name}: {self.recipe.dataset}")

    def _record(self, lr: float, norm: float, elapsed: float, samples: int, tokens: int) -> dict[str, Any]:
        """A line of trainer_log.jsonl; throughput is in tokens a second."""
        state = self.state
        record = {
            "current_steps": state.step,
            "total_steps": self.trainer.total,
            "loss": round(state.loss, 6),
            "lr": lr,
            "grad_norm": round(norm, 6),
            "epoch": round(state.step / self.trainer.steps_per_epoch, 4),
            "percentage": round(100 * state.step / self.trainer.total, 2),
            "samples_per_second": round(samples / max(1e-9, elapsed), 2),
            "throughput": round(tokens / max(1e-9, elapsed), 2),
            "elapsed_time": clock(elapsed),
        }
        if self.trainer.device.type == "cuda":
            record["vram_reserved"] = round(torch.cuda.max_memory_reserved(self.trainer.device) / 2**30, 2)
        return record
