"""A run's output folder: made, emptied or gone on with; and the record of what it ran on."""

from __future__ import annotations

import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from finetune.errors import FinetuneError
from finetune.recipe.schema import Recipe
from finetune.training import checkpoint as checkpoints
from modelfiles.folder.model_folder import ModelFolder

OWN_FILES = (
    "adapter_model.safetensors",
    "trained_weights.safetensors",
    "adapter_config.json",
    "trainer_log.jsonl",
    "train_results.json",
    "report.html",
)


def prepare_output(recipe: Recipe) -> Path | None:
    """Makes or empties output_dir; the checkpoint to go on from, or None. Raises FinetuneError.

    As in LLaMA-Factory, an unset resume_from_checkpoint goes on from the last checkpoint unless overwrite_output_dir.
    """
    output, wish = Path(str(recipe.output_dir)), recipe.resume_from_checkpoint
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
        for old in [*checkpoints.checkpoints(output), output / "runs", output / checkpoints.BEST]:
            shutil.rmtree(old, ignore_errors=True)
        for name in OWN_FILES:
            (output / name).unlink(missing_ok=True)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FinetuneError(f"output_dir: {output} cannot be made: {error}.") from None
    return None


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
