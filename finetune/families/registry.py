"""Which family reads a model folder."""

from __future__ import annotations

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


def open_encoder(folder: ModelFolder, recipe: Recipe) -> Encoder:
    """An encoder of the folder's family, in a process of its own."""
    return family_of(folder).read(folder, recipe).encoder
