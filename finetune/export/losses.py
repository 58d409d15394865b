"""Compares the losses of adapter and merged model on the same rows."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import torch
from rich.console import Console

from finetune.encoding.encoded_rows import media_of
from finetune.families.registry import family_of
from finetune.model.base import load_base
from finetune.model.device import pick_device, pick_dtype
from finetune.model.trained import load_trained
from finetune.recipe.schema import Recipe
from finetune.training.dataset import load_training_data
from finetune.training.parallel import World
from finetune.training.validation import validate


def merge_losses(recipe: Recipe, trained_by: Recipe, merged: Path, merge_base: str) -> dict[str, float]:
    """The validation loss of a merged folder, and of the other base with the adapter beside it.

    recipe: of the merge, with its eval_dataset; trained_by: of the training on a 4-bit base. Raises FinetuneError.
    """
    rows = {"dataset": recipe.eval_dataset, "dataset_dir": recipe.dataset_dir, "media_dir": recipe.media_dir}
    common = rows | {"eval_strategy": "no", "eval_dataset": None, "val_size": 0.0, "fsdp": None}
    base, adapter = {"model_name_or_path": recipe.model_name_or_path}, recipe.adapter_name_or_path
    whole = trained_by.model_copy(update=common | {"model_name_or_path": str(merged), "quantization_bit": None})
    if merge_base == "original":
        other, name = trained_by.model_copy(update=common | base), "adapter on the 4-bit base"
    else:
        other, name = (
            trained_by.model_copy(update=common | base | {"quantization_bit": None}),
            "adapter on the original base",
        )
    return {f"merged ({merge_base})": _dataset_loss(whole, None), name: _dataset_loss(other, adapter)}


def _dataset_loss(recipe: Recipe, adapter: str | None) -> float:
    data = load_training_data(recipe, Console(quiet=True))
    device = pick_device()
    dtype, _ = pick_dtype(recipe, device)
    base = load_base(data.folder, recipe, device, dtype)
    if adapter is not None:
        load_trained(base, adapter)
    family = family_of(data.folder)
    feed = family.feed(base, data, media_of(data.rows).flat.tolist())
    autocast = nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)
    with autocast:
        size = recipe.per_device_eval_batch_size
        module = family.loss(base, 0.0)
        loss, _ = validate(module, module, data.rows, feed, size, World())
    feed.close()
    return loss
