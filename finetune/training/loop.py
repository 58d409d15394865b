"""The training loop: steps, and between them records, validation and checkpoints.

Whatever ends a run (a signal, a broken image, memory that runs out), the last finished step is saved first, so that
the same command goes on from there.
"""

from __future__ import annotations

import json
import math
import signal
import time
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console

from finetune.errors import FinetuneError, writing
from finetune.memory.plan import plans_here
from finetune.model.device import pick_device
from finetune.recipe.load import save_recipe
from finetune.recipe.schema import Recipe
from finetune.reporting.plots import plot_loss, plot_rewards
from finetune.reporting.progress import progress_bar
from finetune.reporting.runlog import RunLog, clock
from finetune.reporting.training_report import write_training_report
from finetune.training.checkpoint import fingerprint
from finetune.training.dataset import load_training_data, skipped
from finetune.training.oom import out_of_memory
from finetune.training.optim import learning_rate
from finetune.training.order import Window, step_windows
from finetune.training.outputs import as_begun, check_output, environment, open_output
from finetune.training.parallel import AgreedError, World, processes, stop_on_signals
from finetune.training.state import TrainResult, reward_figures
from finetune.training.trainer import Trainer
from modelfiles import counted

__all__ = ["TrainResult", "train"]
FIGURES = "loss {task.fields[loss]:.4f}  lr {task.fields[lr]:.2e}  {task.fields[speed]:.0f} samples/s"
LINE_SECONDS = 30.0  # how often a run without a terminal prints its progress
MAX_SKIPPED = 3  # steps without a finite gradient in a row that end the run


def train(recipe: Recipe, console: Console | None = None) -> TrainResult:
    """Trains as the recipe says and writes the trained weights to output_dir. Raises FinetuneError.

    Under torchrun every process calls it, and the processes train together.
    """
    began = time.monotonic()
    console = console or Console(stderr=True, soft_wrap=True)
    recipe.require("dataset", "output_dir")
    with processes(recipe.ddp_timeout) as world:
        console.quiet = console.quiet or not world.main
        return _train(recipe, world, console, began)


def _train(recipe: Recipe, world: World, console: Console, began: float) -> TrainResult:
    """A function of its own, so that nothing holds the trainer when `processes` ends."""
    world.run_on_main_rank(lambda: check_output(recipe))
    data = world.run_on_all_ranks(lambda: load_training_data(recipe, console))
    recipe = world.run_on_main_rank(lambda: as_begun(recipe))
    plans = plans_here(data, recipe, data.rows, pick_device(), lambda free: min(world.gather(free)), world.size)
    planned = plans[0].whole(recipe)
    try:
        # With several plans no checkpoint fits: as_begun would have found its rows.
        identity = fingerprint(plans[0].applied(recipe), data, world.size)
        resume = world.run_on_main_rank(lambda: open_output(recipe, identity))
        trainer = world.run_on_all_ranks(lambda: Trainer(recipe, world, data, console, resume, plans))
        planned = trainer.plan.whole(recipe)
        if resume is not None:
            console.print(f"Going on from {resume}.", highlight=False)
        return TrainingLoop(trainer, began).run()
    except torch.OutOfMemoryError:
        raise out_of_memory(planned, data) from None


class TrainingLoop:
    """The steps of a run from the trainer's state on, and what happens between them."""

    def __init__(self, trainer: Trainer, began: float) -> None:
        self.trainer, self.recipe, self.world, self.data = trainer, trainer.recipe, trainer.world, trainer.data
        self.console, self.output, self.state = trainer.console, trainer.output, trainer.state
        self.log: RunLog | None = None
        self.began, self.stepping = began, time.monotonic()
        self.after_first = self.printed = self.now = self.stepping
        self.first_step_seconds = self.speed = math.nan
        self.samples = self.tokens = self.first_samples = self.skipped_in_a_row = self.stop = 0
        self.saved_step, self.saving = self.state.step, False

    def run(self) -> TrainResult:
        """Trains to the last step, or until a signal comes. Raises FinetuneError."""
        if self.world.main:
            self._write_surroundings()
            self.log = RunLog(self.output, self.recipe, self.state.step, self.console)
        with stop_on_signals() as stopped:
            try:
                self._steps(stopped)
            except FinetuneError as error:
                message = error.message + self._save_after(error)
                if self.world.size > 1 and isinstance(error, AgreedError):
                    self.world.fail(message)
                raise FinetuneError(message) from None
            except Exception as error:
                self._save_after(error)
                raise
            finally:
                if self.log:
                    self.log.close()
        return self._end((stopped[0] if stopped else int(signal.SIGTERM)) if self.stop else None)

    def _write_surroundings(self) -> None:
        """What the run is made of: recipe.yaml and environment.json."""
        surroundings = environment(self.trainer.device, self.data.folder, self.data.digest)
        surroundings |= {"processes": self.world.size, "rows_at_once": self.trainer.plan.record(self.trainer.reason)}
        text = json.dumps(surroundings, indent=2) + "\n"
        with writing(self.output):
            save_recipe(self.recipe, self.output / "recipe.yaml")
            (self.output / "environment.json").write_text(text, encoding="utf-8")

    def _steps(self, stopped: list[int]) -> None:
        state, total = self.state, self.trainer.total
        windows = step_windows(self.data.rows, self.recipe, state.step, self.world.rank, self.world.size)
        following = next(windows)
        with progress_bar(self.console, "training", FIGURES) as progress:
            bar = progress.add_task("training", total=total, completed=state.step, loss=math.nan, lr=0.0, speed=0.0)
            self.trainer.log_samples()
            self._validate()  # a run may have ended before the validation of its last step
            while state.step < total and not self.stop and not state.stops_early(self.recipe.early_stopping_steps):
                window, following = following, next(windows)
                lr = learning_rate(self.recipe, state.step, total)
                loss, norm = self.trainer.step(window, lr, following if state.step + 1 < total else None)
                self.stop = int(self.world.sum(len(stopped))[0])
                self._count(window, loss, norm)
                progress.update(bar, completed=state.step, loss=loss, lr=lr, speed=self.speed)
                self._write_log(loss, lr, norm)
                self._validate()
                if state.step % self.recipe.save_steps == 0 and state.step < total:
                    self._save()
        if state.step != self.saved_step:
            self._save()

    def _count(self, window: Window, loss: float, norm: float) -> None:
        """Counts a finished step. Raises FinetuneError if too many in a row had no finite gradient."""
        self.state.step += 1
        self.samples += window.samples
        self.tokens += window.tokens
        self.now = time.monotonic()
        if math.isnan(self.first_step_seconds):
            self.first_step_seconds = self.now - self.began
            self.after_first, self.first_samples = self.now, self.samples
        self.speed = (self.samples - self.first_samples) / max(1e-9, self.now - self.after_first)
        finite = math.isfinite(norm) and math.isfinite(loss)
        self.skipped_in_a_row = 0 if finite else self.skipped_in_a_row + 1
        # A loss scale that is still coming down from its high start is no reason to stop.
        scaler = self.trainer.scaler
        if self.skipped_in_a_row >= MAX_SKIPPED and not (scaler.is_enabled() and scaler.get_scale() > 1):
            raise AgreedError(
                f"{MAX_SKIPPED} steps in a row had no finite gradient; the last one's rows are: "
                f"{'; '.join(dict.fromkeys(window.sources))}. Lower learning_rate, or look at those rows."
            )

    def _write_log(self, loss: float, lr: float, norm: float) -> None:
        """A line of trainer_log.jsonl where one is due, and one on a console that shows no moving bar."""
        state, total = self.state, self.trainer.total
        if not self.console.is_terminal and self.now - self.printed >= LINE_SECONDS:
            self.printed = self.now
            self.console.print(
                f"step {state.step}/{total}  loss {loss:.4f}  lr {lr:.2e}  {self.speed:.0f} samples/s", highlight=False
            )
        if (state.step % self.recipe.logging_steps == 0 or state.step == total) and state.recent:
            state.loss, state.recent = sum(state.recent) / len(state.recent), []
            state.rewards = [sum(values) / len(values) for values in zip(*state.recent_rewards, strict=True)]
            state.recent_rewards = []
            if self.log:
                self.log.write(self._record(lr, norm, self.now - self.stepping))

    def _record(self, lr: float, norm: float, elapsed: float) -> dict[str, Any]:
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
            "samples_per_second": round(self.samples / max(1e-9, elapsed), 2),
            "throughput": round(self.tokens / max(1e-9, elapsed), 2),
            "elapsed_time": clock(elapsed),
        } | reward_figures(state.rewards)
        if self.trainer.device.type == "cuda":
            record["vram_reserved"] = round(torch.cuda.max_memory_reserved(self.trainer.device) / 2**30, 2)
        return record

    def _validate(self) -> None:
        """Validates where it is due and has not been done."""
        state = self.state
        if state.validated_step == state.step or not self._validation_is_due():
            return
        self.trainer.validate()
        if self.log:
            steps = {"current_steps": state.step, "total_steps": self.trainer.total}
            self.log.write(steps | {"eval_loss": state.eval_loss} | reward_figures(state.eval_rewards, "eval_"))

    def _validation_is_due(self) -> bool:
        recipe, step = self.recipe, self.state.step
        if not self.data.validation or not step:
            return False
        if step == self.trainer.total:
            return True
        every = recipe.eval_steps or recipe.logging_steps
        if recipe.eval_strategy == "epoch":
            every = self.trainer.steps_per_epoch
        return recipe.eval_strategy != "no" and step > recipe.eval_delay and step % every == 0

    def _save(self) -> None:
        self.saving = True  # if this fails, trying again would not help
        self.saved_step = self.trainer.save()
        self.saving = False

    def _save_after(self, error: Exception) -> str:
        """Saves the last finished step after an error, and shows what there is of the run; what to say of it.

        Not where an error is of one process alone: the others are waiting for it and could not take part.
        """
        if self.world.size > 1 and not isinstance(error, AgreedError):
            return ""
        with suppress(Exception):  # what ended the run is what must be said
            if self.state.step != self.saved_step and not self.saving and self.trainer.undo_step():
                self._save()
            result = self._result(None)
            if self.world.main:
                self._show(result)
        saved = self.state.step and self.state.step == self.saved_step and not self.saving
        return f" Step {self.state.step} is saved; the same command goes on from there." if saved else ""

    def _end(self, interrupted: int | None) -> TrainResult:
        """Writes the weights that are kept, the results, the curve and the report."""
        if interrupted is None:
            with writing(self.output):
                self.trainer.write_final()
        if self.state.skipped:
            steps = counted(self.state.skipped, "step")
            self.console.print(f"[yellow]Warning:[/] skipped {steps} without a finite gradient.")
        if self.data.broken:
            self.console.print(skipped(self.data.broken), markup=False, highlight=False)
        result = self._result(interrupted)
        if self.world.main:
            samples = []
            if interrupted is None:
                text = json.dumps(asdict(result), indent=2) + "\n"
                with writing(self.output):
                    (self.output / "train_results.json").write_text(text, encoding="utf-8")
                samples = self.trainer.samples()
            with writing(self.output):
                self._show(result, samples)
        self.trainer.close()
        return result

    def _show(self, result: TrainResult, samples: Any = ()) -> None:
        """The curve and the page."""
        if self.recipe.plot_loss:
            title = f"{self.data.folder.name}: {self.recipe.dataset}"
            plot_loss(self.output, title)
            plot_rewards(self.output, title)
        write_training_report(self.output, self.recipe, asdict(result), samples)

    def _result(self, interrupted: int | None) -> TrainResult:
        state, trainer = self.state, self.trainer
        best = self.recipe.load_best_model_at_end and state.best_step
        rewards = reward_figures(state.eval_rewards or state.rewards)
        peak = None
        if trainer.device.type == "cuda":
            peak = max(self.world.gather(torch.cuda.max_memory_reserved(trainer.device) / 2**30))
        return TrainResult(
            output_dir=str(self.output),
            steps=state.step,
            total_steps=trainer.total,
            seconds=time.monotonic() - self.began,
            first_step_seconds=self.first_step_seconds,
            samples=self.samples,
            samples_per_second=self.speed if self.speed > 0 else self.samples / max(1e-9, self.now - self.stepping),
            loss=state.loss,
            eval_loss=None if math.isnan(state.eval_loss) else state.best_loss if best else state.eval_loss,
            best_step=state.best_step or None,
            processes=self.world.size,
            trainable_parameters=trainer.trainable,
            four_bit_layers=trainer.quantised,
            dropped_rows=self.data.dropped,
            broken_rows=len(self.data.broken),
            broken=skipped(self.data.broken),
            skipped_steps=state.skipped,
            peak_memory_gib=peak,
            interrupted=interrupted,
            preference_accuracy=rewards.get("rewards/accuracies"),
            reward_margin=rewards.get("rewards/margins"),
        )
