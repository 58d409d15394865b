"""What a folder of trained weights says of the training that made it."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from finetune.errors import FinetuneError
from finetune.recipe.load import load_recipe
from finetune.recipe.schema import Recipe
from modelfiles.adapter import reader
from modelfiles.folder.model_folder import ModelFolder, ModelFolderError

ADAPTER, ADAPTER_CONFIG = reader.WEIGHTS, reader.CONFIG
TRAINED_WEIGHTS, RECIPE, BEST = "trained_weights.safetensors", "recipe.yaml", "best_adapter"
INNER = re.compile(rf"checkpoint-\d+|{BEST}")  # folders inside a run's output_dir
IMAGE_LIMITS = ("image_min_pixels", "image_max_pixels")


def training_recipe(path: Path) -> Recipe | None:
    """The recipe of the run whose output_dir, checkpoint or best weights `path` is; None for another tool's folder.

    Raises FinetuneError if it cannot be read.
    """
    path = path.resolve()
    if not (path / RECIPE).is_file() and INNER.fullmatch(path.name):
        path = path.parent
    return load_recipe(path / RECIPE) if (path / RECIPE).is_file() else None


def with_training_limits(recipe: Recipe) -> Recipe:
    """The recipe with the pixel limits that its adapter was trained with, where it does not set its own.

    They are the training recipe's, or those of the image processor that another tool saved beside its adapter.
    Raises FinetuneError.
    """
    if not recipe.adapter_name_or_path:
        return recipe
    path = Path(recipe.adapter_name_or_path).resolve()
    trained_by = training_recipe(path)
    if trained_by is not None:
        limits = tuple(getattr(trained_by, key) for key in IMAGE_LIMITS)
    else:
        try:
            limits = tuple(size or None for size in ModelFolder(path, {}, []).image_pixel_limits)
        except ModelFolderError as error:
            raise FinetuneError(f"adapter_name_or_path: {error}") from None
    unset = {key: limit for key, limit in zip(IMAGE_LIMITS, limits, strict=True) if getattr(recipe, key) is None}
    return recipe.model_copy(update=unset)


def weights_digest(path: Path) -> str:
    """A sha256 of the trained weights in a folder; of nothing if there are none."""
    digest = hashlib.sha256()
    for name in (ADAPTER, TRAINED_WEIGHTS):
        if (path / name).is_file():
            with (path / name).open("rb") as file:
                while block := file.read(1 << 24):
                    digest.update(block)
    return digest.hexdigest()
