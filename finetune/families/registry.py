"""Which family reads a model folder."""

from __future__ import annotations

from typing import Any

from finetune.encoding.encoder import Encoder
from finetune.families.base import Family
from finetune.model.supported import QWEN_VL
from finetune.recipe.schema import Recipe
from modelfiles.folder.model_folder import ModelFolder


def family_of(folder: ModelFolder) -> Family:
    """The code that trains this model."""
    if folder.model_type in QWEN_VL:
        from finetune.families.qwen_vl import QwenVL

        return QwenVL()
    from finetune.families.generic import OtherVL

    return OtherVL()


def training_family(model: Any, folder: ModelFolder, recipe: Recipe) -> Family:
    """The code that trains `model`, as it is before training, in the recipe's stage."""
    if recipe.stage == "sft":
        return family_of(folder)
    from finetune.families.preference import QwenPairs, reference_for

    return QwenPairs(recipe, reference_for(model, recipe))


def open_encoder(folder: ModelFolder, recipe: Recipe) -> Encoder:
    """An encoder of the folder's family, in a process of its own."""
    return family_of(folder).read(folder, recipe).encoder
