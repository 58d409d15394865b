"""A run's output folder: made, emptied or gone on with; and the record of what it ran on."""

from __future__ import annotations

import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from finetune.errors import FinetuneError
from finetune.model.trained_by import ADAPTER, ADAPTER_CONFIG, BEST, RECIPE, TRAINED_WEIGHTS
from finetune.recipe.load import load_recipe
from finetune.recipe.schema import Recipe
from finetune.reporting.sample import SAMPLE_LOG
from finetune.reporting.trackers import refuse_missing
from finetune.training import checkpoint as checkpoints
from modelfiles.folder.atomic_write import PARTIAL
from modelfiles.folder.model_folder import ModelFolder

FINAL_FILES = (ADAPTER, ADAPTER_CONFIG, TRAINED_WEIGHTS, "train_results.json")  # of a run that has ended
LOGS = ("trainer_log.jsonl", SAMPLE_LOG, "report.html", "training_loss.png", "training_rewards.png")
OWN = {*FINAL_FILES, *LOGS, RECIPE, "environment.json", "runs", "wandb", "swanlog", "mlruns", BEST}


def check_output(recipe: Recipe) -> None:
    """Makes output_dir, or checks that a run may write into it, before anything is loaded. Raises FinetuneError.

    What the run reports to must be installed as well.
    """
    refuse_missing(recipe.report_to)
    output, wish = Path(str(recipe.output_dir)), recipe.resume_from_checkpoint
    if output.exists() and not output.is_dir():
        raise FinetuneError(f"output_dir: {output} is a file.")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FinetuneError(f"output_dir: {output} cannot be made: {error}.") from None
    adapter = recipe.adapter_name_or_path
    if adapter and Path(adapter).resolve() == output.resolve():
        raise FinetuneError(f"output_dir: {output} holds the adapter to go on from; choose another folder.")
    if isinstance(wish, str):
        return
    last = checkpoints.last_checkpoint(output)
    if wish is True and last is None:
        raise FinetuneError(f"resume_from_checkpoint is true but {output} has no checkpoint.")
    goes_on = last is not None and wish is not False
    if not goes_on and not recipe.overwrite_output_dir and not _only_begun(output):
        raise FinetuneError(
            f"output_dir: {output} is not empty; set overwrite_output_dir: true, or choose another folder."
        )


def as_begun(recipe: Recipe) -> Recipe:
    """The recipe with the rows that `auto` chose when the run began which it would go on with, if there is one."""
    output, wish = Path(str(recipe.output_dir)), recipe.resume_from_checkpoint
    ended = recipe.overwrite_output_dir and (output / "train_results.json").is_file()
    if recipe.per_device_train_batch_size != "auto" or wish is False or (wish is None and ended):
        return recipe
    chosen = Path(wish) if isinstance(wish, str) else checkpoints.last_checkpoint(output)
    try:
        begun = load_recipe(chosen / RECIPE) if chosen else recipe
    except FinetuneError:  # of a checkpoint that is broken: who opens it says so
        return recipe
    rows = begun.batch_size * begun.gradient_accumulation_steps
    if begun.per_device_train_batch_size == "auto" or rows != recipe.gradient_accumulation_steps:
        return recipe
    keys = ("per_device_train_batch_size", "gradient_accumulation_steps")
    return recipe.model_copy(update={key: getattr(begun, key) for key in keys})


def open_output(recipe: Recipe, identity: dict[str, Any]) -> Path | None:
    """The checkpoint to go on from, or None after emptying output_dir of an earlier run. Raises FinetuneError.

    An unset resume_from_checkpoint goes on from the last checkpoint. With overwrite_output_dir it does so only where
    the same run (by its `identity`, see checkpoint.fingerprint) was interrupted: who gives the command again wants it
    to end, not to begin anew.
    """
    output, wish = Path(str(recipe.output_dir)), recipe.resume_from_checkpoint
    last = checkpoints.last_checkpoint(output)
    chosen = Path(wish) if isinstance(wish, str) else None if wish is False else last
    if chosen is last and last is not None and wish is None and recipe.overwrite_output_dir:
        chosen = last if _was_interrupted(output, last, identity) else None
    elif chosen is not None:  # before anything of an earlier run is deleted: another run's checkpoint is refused
        checkpoints.load_checkpoint(chosen, identity)
    leftovers = [path for name in ("checkpoint-", BEST) for path in output.glob(f".{name}*{PARTIAL}")]
    if chosen is None:
        leftovers += [*checkpoints.checkpoints(output), output / "runs", output / BEST]
        for name in LOGS:
            (output / name).unlink(missing_ok=True)
    for folder in leftovers:
        shutil.rmtree(folder, ignore_errors=True)
    for name in FINAL_FILES:  # written anew at the end: what is there belongs to a run that ended earlier
        (output / name).unlink(missing_ok=True)
    return chosen


def _was_interrupted(output: Path, last: Path, identity: dict[str, Any]) -> bool:
    if (output / "train_results.json").is_file():
        return False
    try:
        checkpoints.load_checkpoint(last, identity)
    except FinetuneError:
        return False
    return True


def _only_begun(output: Path) -> bool:
    """Whether the folder holds nothing, or what a run left that was killed before its first checkpoint."""
    names = {path.name for path in output.iterdir() if not path.name.endswith(PARTIAL)}
    return names <= OWN - set(FINAL_FILES)


def environment(device: torch.device, folder: ModelFolder, data: str) -> dict[str, Any]:
    """Versions, device and hashes that a result depends on."""
    packages: dict[str, str | None] = {}
    for package in ("lensmith", "torch", "transformers", "peft", "bitsandbytes", "accelerate", "safetensors"):
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            packages[package] = None
    return {
        "python": platform.python_version(),
        "packages": packages,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "base_model": str(folder.path),
        "base_fingerprint": folder.fingerprint(),
        "data_sha256": data,
    }
