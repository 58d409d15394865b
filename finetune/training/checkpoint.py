"""Checkpoints that are whole or not there, and everything a run needs to go on bit for bit.

A checkpoint is written into a hidden folder, flushed to disk and renamed: a full disk or a SIGKILL leaves the one
before it untouched.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import torch

from finetune.errors import FinetuneError
from finetune.model.trained import save_trained
from finetune.model.trained_by import BEST, RECIPE, weights_digest
from finetune.recipe.load import save_recipe
from finetune.recipe.schema import Recipe
from finetune.training.dataset import TrainingData
from modelfiles.folder.atomic_write import new_folder

Trained = dict[str, Any]  # weights.trained_state
# Keys that may differ between a run and its continuation. What they name (base, data, adapter) is compared by its
# content, so it may have moved; more steps or epochs are a longer run of the same; the others change no weight.
FREE_KEYS = {
    "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "logging_steps", "save_steps", "save_total_limit",
    "plot_loss", "report_to", "sample_answers", "max_new_tokens", "export_dir", "export_size", "ddp_timeout",
    "disable_gradient_checkpointing", "model_name_or_path", "adapter_name_or_path", "dataset", "dataset_dir",
    "media_dir", "max_steps", "num_train_epochs", "preprocessing_num_workers",
} | {name for name, field in Recipe.model_fields.items() if str(field.description).startswith("No effect")}  # fmt: skip
PREFERENCE_KEYS = {"pref_loss", "pref_beta", "pref_ftx", "dpo_label_smoothing", "simpo_gamma"}
VIDEO_KEYS = {"video_max_pixels", "video_min_pixels", "video_fps", "video_maxlen"}


class ForeignCheckpoint(FinetuneError):
    """The checkpoint belongs to a run of other inputs or settings."""


def fingerprint(recipe: Recipe, data: TrainingData, processes: int) -> dict[str, Any]:
    """What must be equal for a checkpoint to be continued: the recipe's keys that matter, and hashes of its inputs."""
    free = FREE_KEYS if data.bank.clips else FREE_KEYS | VIDEO_KEYS
    if recipe.stage == "sft":
        free = free | PREFERENCE_KEYS
    keys = {key: value for key, value in recipe.model_dump().items() if key not in free}
    inputs = {"base model": data.folder.fingerprint(), "data": data.digest, "processes": processes}
    if recipe.adapter_name_or_path:
        inputs["adapter"] = weights_digest(Path(recipe.adapter_name_or_path))
    return keys | inputs


def save_checkpoint(
    folder: Path, step: int, model: Any, trained: Trained, state: dict[str, Any], keep: int | None, recipe: Recipe
) -> Path:
    """Writes `folder`/checkpoint-`step`: the model's `trained` weights, the run's state and its recipe.

    Raises FinetuneError if the disk refuses; earlier checkpoints stay whole.
    """
    final = folder / f"checkpoint-{step}"
    try:
        with new_folder(final, durable=True) as partial:
            save_trained(model, trained, partial)
            save_recipe(recipe, partial / RECIPE)
            torch.save(state, partial / "state.pt")
    except (OSError, RuntimeError) as error:
        # torch.save reports a full disk as RuntimeError, in the words of its source code.
        reason = error if isinstance(error, OSError) else "the disk took a part of it only; make room there"
        last = last_checkpoint(folder)
        raise FinetuneError(
            f"The checkpoint {final} could not be written ({reason}); "
            + (f"the last good one is {last}." if last else "there is no earlier one.")
        ) from None
    if keep:
        for old in checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    return final


def save_best(folder: Path, model: Any, trained: Trained) -> None:
    """Writes the best weights so far to `folder`/best_adapter, whole or not at all. Raises FinetuneError."""
    final = folder / BEST
    try:
        with new_folder(final) as partial:
            save_trained(model, trained, partial)
    except OSError as error:
        raise FinetuneError(f"The best weights {final} could not be written: {error}.") from None


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run by step."""
    found = [p for p in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name) and p.is_dir()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def last_checkpoint(folder: Path) -> Path | None:
    found = checkpoints(folder)
    return found[-1] if found else None


def load_checkpoint(path: Path, expected: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's state. Raises FinetuneError if it is broken or belongs to another run than `expected`."""
    try:
        state: dict[str, Any] = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FinetuneError(f"{path} is no checkpoint: it has no state.pt.") from None
    except Exception as error:  # torch.load raises whatever its unpickler meets
        raise FinetuneError(f"The checkpoint {path} is broken: {str(error).splitlines()[0]}") from None
    was = state["fingerprint"]
    for key in expected:
        if was.get(key) != expected[key]:
            raise ForeignCheckpoint(
                f"The checkpoint {path} was made with {key} {was.get(key)!r}, now it is {expected[key]!r}; "
                "restore it, or set overwrite_output_dir: true to start afresh."
            )
    return state
