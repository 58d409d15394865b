"""Merging an adapter into its base by file surgery.

The base's files are copied as they are; in the copies of its safetensors the bytes of the adapted weights alone are
replaced, in location, by base + delta computed in float32 and rounded once. So names, dtypes, shapes, shards and every
other file are the base's, which is what makes the result load wherever the base loads. One block of a weight is in
memory at a time, and no GPU is needed.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import torch
from rich.console import Console

from finetune.errors import FinetuneError
from finetune.export.losses import merge_losses
from finetune.export.model_card import CARD, model_card
from finetune.export.processor_limits import narrow_limits
from finetune.export.provenance import make_provenance
from finetune.export.shards import INDEX, TensorLocation, copy_weights
from finetune.model.changes import Change, dequantised, plan_changes, read_trained, row_blocks
from finetune.model.folder import open_base
from finetune.model.tensors import DTYPES, read_tensor
from finetune.model.trained_by import training_recipe, with_training_limits
from finetune.recipe.schema import Recipe
from modelfiles.folder.atomic_write import new_folder
from modelfiles.folder.model_folder import ModelFolder
from modelfiles.folder.provenance import PROVENANCE, to_bytes

ORIGINAL, DEQUANTIZED = "original", "dequantized"
WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack"}


def merge(recipe: Recipe, console: Console | None = None, merge_base: str = ORIGINAL) -> Path:
    """Writes the merged model to export_dir and returns it. Raises FinetuneError; then export_dir is as it was.

    merge_base: `original` adds what was trained to the base's own weights; `dequantized`, after training on a 4-bit
    base, to those weights as their 4-bit copies have them. With an eval_dataset, the validation loss of both is said.
    """
    console = console or Console(stderr=True, soft_wrap=True)
    recipe.require("adapter_name_or_path", "export_dir")
    folder = open_base(recipe)
    adapter, target = Path(str(recipe.adapter_name_or_path)), Path(str(recipe.export_dir))
    changes = plan_changes(folder, read_trained(adapter, folder))
    trained_by = training_recipe(adapter)
    if merge_base == DEQUANTIZED:
        if trained_by is None or trained_by.quantization_bit != 4:
            raise FinetuneError(f"--merge-base dequantized: {adapter} was not trained on a 4-bit base.")
        changes = dequantised(folder, changes, trained_by.double_quantization)
    _refuse_foreign(target, folder, adapter)
    try:
        with new_folder(target) as partial:
            for file in _files(folder):
                shutil.copyfile(file, partial / file.name)
            limits = narrow_limits(folder, partial, with_training_limits(recipe))
            locations = copy_weights(folder, partial, recipe.export_size * 1e9 if recipe.export_size else None)
            delta_norm, weight_norm = _patch(folder, locations, changes)
            if delta_norm == 0:
                raise FinetuneError(f"The adapter {adapter} changes nothing: every delta is zero. Was it trained?")
            losses = None
            supervised = trained_by is not None and trained_by.stage == "sft"  # other losses compare with the base
            if recipe.eval_dataset and trained_by is not None and supervised and trained_by.quantization_bit == 4:
                losses = merge_losses(recipe, trained_by, partial, merge_base)
            provenance = make_provenance(folder, adapter, len(changes), delta_norm, weight_norm)
            provenance |= {"merge_base": merge_base, "validation_loss": losses}
            (partial / PROVENANCE).write_bytes(to_bytes(provenance))
            (partial / CARD).write_text(model_card(folder, provenance, trained_by), encoding="utf-8")
    except OSError as error:
        raise FinetuneError(f"export_dir: {target} could not be written: {error}.") from None
    console.print(
        f"{len(changes)} weights changed, ||dW|| = {delta_norm:.4g} "
        f"({100 * delta_norm / weight_norm:.2f} % of theirs).",
        highlight=False,
    )
    if limits:
        console.print(f"Images are limited to {limits} pixels, as they were in training.", highlight=False)
    if losses:
        said = "; ".join(f"{name} {value:.4f}" for name, value in losses.items())
        console.print(f"Validation loss on {recipe.eval_dataset}: {said}.", highlight=False)
    return target


def _patch(folder: ModelFolder, locations: dict[str, TensorLocation], changes: list[Change]) -> tuple[float, float]:
    """Writes the merged weights over the copies; the norms of all differences and of the weights that change."""
    delta_square = weight_square = 0.0
    for change in changes:
        info, location = folder.tensors[change.weight], locations[change.weight]
        stride = info.size // max(1, info.shape[0] if info.shape else 1)
        with location.file.open("r+b") as file:
            for rows in row_blocks(change, info):
                old = read_tensor(info, rows).float()
                merged = change.merged(old, rows)
                new = merged.to(DTYPES[info.dtype])
                if not torch.isfinite(new).all():
                    raise FinetuneError(
                        f"Merging {change.weight} gives values that {info.dtype} cannot hold; the adapter or the base "
                        "is broken."
                    )
                delta_square += (merged - old).square().sum().item()
                weight_square += old.square().sum().item()
                file.seek(location.offset + rows.start * stride)
                file.write(new.contiguous().view(torch.uint8).numpy().tobytes())
    return math.sqrt(delta_square), math.sqrt(weight_square)


def _files(folder: ModelFolder) -> list[Path]:
    """The base's files but its weights (in other formats they would go stale), its provenance and hidden ones."""
    return [
        file
        for file in sorted(folder.path.iterdir())
        if file.is_file()
        and file.name not in (PROVENANCE, INDEX, CARD)
        and not file.name.startswith(".")
        and file.suffix not in WEIGHT_SUFFIXES
    ]


def _refuse_foreign(target: Path, folder: ModelFolder, adapter: Path) -> None:
    """Only a folder that an export made may be replaced."""
    if target.resolve() in (folder.path, adapter.resolve()):
        raise FinetuneError(f"export_dir: {target} is the base or the adapter itself; choose another folder.")
    if target.exists() and not (target.is_dir() and (not any(target.iterdir()) or (target / PROVENANCE).is_file())):
        raise FinetuneError(f"export_dir: {target} exists and is not an earlier export's; choose another folder.")
