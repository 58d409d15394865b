"""What is trained and how: the model, its optimiser, one step, validation, checkpoints."""

from __future__ import annotations

import functools
import math
import shutil
from array import array
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from finetune.encoding.encoded_rows import lengths_of, media_of
from finetune.errors import FinetuneError
from finetune.families.base import Feed
from finetune.families.registry import training_family
from finetune.memory.plan import ESTIMATED, Plan, set_checkpointing
from finetune.memory.trial import Trial, Tried, quickest
from finetune.model.base import dropout, four_bit_layers, keep_activations, load_base
from finetune.model.changes import refuse_unmergeable
from finetune.model.device import pick_device, pick_dtype
from finetune.model.targets import experts_note, make_trainable
from finetune.model.tensors import gather_full
from finetune.model.trained import go_on_from, restore_trained, save_trained, trained_state
from finetune.model.trained_by import BEST
from finetune.recipe.schema import Recipe
from finetune.reporting.sample import SAMPLE_LOG, Sample, log_samples
from finetune.training import checkpoint as checkpoints
from finetune.training.dataset import TrainingData
from finetune.training.optim import load_optimizer, make_optimizer, steps_per_epoch, total_steps
from finetune.training.order import DECODED_AHEAD, Window, epoch_batches
from finetune.training.parallel import World, distribute
from finetune.training.passes.graphs import GraphPasses, make_passes
from finetune.training.passes.modules import ModulePasses
from finetune.training.samples import answer_samples, current_answers
from finetune.training.state import State
from finetune.training.validation import validate
from modelfiles import counted


class Trainer:
    """The model and all that a step needs, on this process's device; goes on from the checkpoint `resume`.

    Raises FinetuneError.
    """

    def __init__(
        self, recipe: Recipe, world: World, data: TrainingData, console: Console, resume: Path | None,
        plans: Sequence[Plan],
    ) -> None:  # fmt: skip
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
        if note := experts_note(data.folder, recipe):
            console.print(f"[yellow]Warning:[/] {note}", highlight=False)
        if recipe.adapter_name_or_path:
            console.print(f"Training goes on with {recipe.adapter_name_or_path}.", highlight=False)
            start = go_on_from(self.base, recipe, data.folder)
        else:
            start = None
        self.model = make_trainable(self.base, recipe, start)
        refuse_unmergeable(self.model, data.folder)
        self.family = training_family(self.model, data.folder, recipe)
        self.identity = checkpoints.fingerprint(plans[0].applied(recipe), data, world.size)
        saved = checkpoints.load_checkpoint(resume, self.identity) if resume else None
        if resume is not None:
            restore_trained(self.model, resume)
        self.trainable = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        console.print(
            f"{counted(len(data.rows), 'row')} to train on, {len(data.validation)} to validate, {data.bank.counts()}; "
            f"{counted(self.trainable, 'trainable parameter')}"
            + (
                f"; {counted(world.size, 'process', 'processes')}, {'FSDP' if recipe.fsdp else 'DDP'}."
                if world.size > 1
                else "."
            ),
            highlight=False,
        )
        self.loss = self.family.loss(self.base, recipe.neftune_noise_alpha or 0.0)
        unseen = not media_of(data.rows).counts.all()
        self.parallel = distribute(self.loss, self.base, recipe, world, self.device, self.dtype, unseen)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(self.model, recipe, self.device, console)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.autocast = nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device.type, self.dtype)
        self.modules = ModulePasses(self.parallel, self.autocast, self.scaler, world.size)
        self.plan, self.reason = plans[0], ESTIMATED
        if len(plans) > 1:
            trial = Trial(data.rows, self.device, self._tried, self.model.zero_grad)
            self.plan, self.reason = quickest(plans, trial)
        console.print(self.plan.choice(recipe, self.reason), highlight=False, end="")
        self.recipe = recipe = self.plan.applied(recipe)
        self.identity = checkpoints.fingerprint(recipe, data, world.size)
        self.steps_per_epoch = steps_per_epoch(recipe, len(data.rows), world.size)
        self.total = total_steps(recipe, len(data.rows), world.size)
        self.feed, self.held_out_feed = self._feeds()
        self.passes = self._passes(self.plan, self.feed, console)
        self.state = State()
        torch.manual_seed(recipe.seed + world.rank)  # each process draws its own dropout
        if saved is not None:
            self._restore(saved)
            if self.state.step > self.total:
                raise FinetuneError(
                    f"{resume} has {counted(self.state.step, 'step')}, the recipe asks for {self.total} in all."
                )
        self.rng, self.updating = self._rng_state(), False  # after the last step; whether weights are changing

    def _passes(self, plan: Plan, feed: Feed, console: Console) -> ModulePasses | GraphPasses:
        """What computes the feed's micro-batches as the plan says."""
        set_checkpointing(self.base, plan)
        recipe = plan.applied(self.recipe)
        return make_passes(self.base, recipe, self.data, self.modules, plan.kept_layers, console, feed)

    def _tried(self, plan: Plan) -> Tried:
        recipe, feed = self.recipe, self.family.feed(self.base, self.data, [])
        passes = self._passes(plan, feed, Console(quiet=True))
        batches = epoch_batches(lengths_of(self.data.rows), plan.size, recipe.seed, 0, recipe.group_by_length)
        return Tried(feed, batches, lambda batch, images: passes.learn(batch, images, 1.0, True))

    def _rng_state(self) -> tuple[Any, Any]:
        return torch.get_rng_state(), torch.cuda.get_rng_state() if self.device.type == "cuda" else None

    def _feeds(self) -> tuple[Feed, Feed]:
        """What makes batches of the training and of the validation rows."""
        recipe, data, world = self.recipe, self.data, self.world
        size, seed, grouped = recipe.batch_size, recipe.seed, recipe.group_by_length
        batches = epoch_batches(lengths_of(data.rows), size, seed, 0, grouped)
        turns = sorted(range(len(batches)), key=lambda n: n % world.size != world.rank)  # its own first
        media = media_of(data.rows)
        used = array("i", (image for n in turns for row in batches[n] for image in media[row]))
        held_out = media_of(data.validation).flat.tolist()
        reused = self.total > self.steps_per_epoch
        feed = self.family.feed
        return (
            feed(self.base, data, used, reused, world.local_size, self.output),
            feed(self.base, data, held_out, True, world.local_size, self.output),
        )

    def step(self, window: Window, lr: float, following: Window | None) -> tuple[float, float]:
        """One optimiser step: (loss a label token or pair, gradient norm before clipping), of all processes together.

        The images of the micro-batches after each one, at last of the `following` window, are decoded meanwhile.
        Raises FinetuneError, in all processes, if a micro-batch cannot be made.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["ratio"]
        measured = torch.zeros(len(self.loss.measured), dtype=torch.float64)
        total = torch.zeros((), dtype=torch.float64, device=self.device)  # read once a step: reading waits for the GPU
        parts = window.labels if self.recipe.stage == "sft" else window.samples
        coming = [*window.mine, *(following.mine if following is not None else [])]
        for n, rows in enumerate(window.mine):
            for later in coming[n : n + 1 + DECODED_AHEAD]:
                self.feed.prefetch(later)
            batch, images = self.world.agree(functools.partial(self.feed.batch, rows))
            last = n + 1 == len(window.mine)
            share = 0.0 if last and window.idle else 1.0 / parts
            total += self.passes.learn(batch, images, share, last)
            measured += torch.tensor(self.loss.measured, dtype=torch.float64) * share
        loss, *figures = self.world.sum(total.item(), *measured.tolist())
        self.scaler.unscale_(self.optimizer)
        total_norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.recipe.max_grad_norm or math.inf)
        norm = gather_full(total_norm).item()
        if math.isfinite(norm) and math.isfinite(loss):
            self.updating = True
            self.scaler.step(self.optimizer)
            self.updating = False
            self.state.recent.append(loss)
            if self.recipe.stage == "dpo":
                self.state.recent_rewards.append(figures)
        else:
            self.state.skipped += 1
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=self.passes.frees_gradients)
        self.rng = self._rng_state()
        return loss, norm

    def undo_step(self) -> bool:
        """Drops what an unfinished step left; whether the run is again as it was after the last finished one."""
        self.optimizer.zero_grad(set_to_none=self.passes.frees_gradients)
        dropout(self.model, True)
        return not self.updating

    def validate(self) -> None:
        """Validates; keeps the weights if they are the best so far."""
        state, size = self.state, self.recipe.per_device_eval_batch_size
        dropout(self.model, False)
        self.loss.noisy = False
        with self.autocast:
            state.eval_loss, state.eval_rewards = validate(
                self.parallel, self.loss, self.data.validation, self.held_out_feed, size, self.world
            )
        self.loss.noisy = True
        dropout(self.model, True)
        state.validated_step = state.step
        self.log_samples()
        if state.eval_loss < state.best_loss:
            state.best_loss, state.best_step, state.stale = state.eval_loss, state.step, 0
            if self.recipe.load_best_model_at_end:
                trained = trained_state(self.model)
                if self.world.main:
                    checkpoints.save_best(self.output, self.model, trained)
        else:
            state.stale += 1

    def log_samples(self) -> None:
        """Answers a few validation rows as the weights are now, if the recipe asks for it; draws no random number."""
        recipe, rows = self.recipe, self.recipe.sample_answers
        if not rows or recipe.fsdp or not self.world.main or not self.data.validation:
            return
        dropout(self.model, False)
        keep_activations(self.base)  # checkpointing would drop the key-value cache
        try:
            size, feed = recipe.batch_size, self.held_out_feed
            pairs = recipe.stage == "dpo"
            answers = current_answers(self.base, self.data, feed, self.dtype, recipe.max_new_tokens, size, rows, pairs)
            log_samples(self.output / SAMPLE_LOG, self.state.step, answers)
        except torch.OutOfMemoryError:
            self.console.print("[yellow]Warning:[/] no GPU memory is left for sample_answers.")
        finally:
            set_checkpointing(self.base, self.plan)
            dropout(self.model, True)

    def save(self) -> int:
        """Writes a checkpoint of the last finished step; returns the step. Raises FinetuneError."""
        saved = {
            "state": asdict(self.state),
            "optimizer": gather_full(self.optimizer.state_dict()),
            "scaler": self.scaler.state_dict(),
            "rng": self.world.gather(self.rng),
            "fingerprint": self.identity,
        }
        trained = trained_state(self.model)
        if self.world.main:
            keep = self.recipe.save_total_limit
            checkpoints.save_checkpoint(self.output, self.state.step, self.model, trained, saved, keep, self.recipe)
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

    def write_final(self) -> None:
        """Writes the weights that are kept into output_dir. Raises FinetuneError."""
        trained = trained_state(self.model)
        if not self.world.main:
            return
        best = self.output / BEST
        if self.recipe.load_best_model_at_end and self.state.best_step:
            if not best.is_dir():
                raise FinetuneError(
                    f"{best} is gone, so the best weights cannot be kept; the last checkpoint is whole."
                )
            for file in best.iterdir():
                shutil.copyfile(file, self.output / file.name)
        else:
            save_trained(self.model, trained, self.output)

    def samples(self) -> list[Sample]:
        """Answers before and after, from the weights that are kept; none where FSDP has shared the model out."""
        if self.recipe.fsdp:
            return []
        restore_trained(self.model, self.output)
        self.optimizer.state.clear()
        torch.cuda.empty_cache()  # blocks of training's sizes; does nothing without a GPU
        try:
            feed = self.held_out_feed if self.data.validation else self.feed
            max_new_tokens, size = self.recipe.max_new_tokens, self.recipe.batch_size
            pairs = self.recipe.stage == "dpo"
            return answer_samples(self.model, self.base, self.data, feed, self.dtype, max_new_tokens, size, pairs)
        except torch.OutOfMemoryError:
            return []

    def close(self) -> None:
        self.feed.close()
        self.held_out_feed.close()
