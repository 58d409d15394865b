"""Which base models can be trained, and what of a recipe they take.

Three families have code of their own. Any other vision-language model that transformers loads is trained by its own
processor and forward pass, if its folder and its chat template allow it (see processor_chats.py).
"""

from __future__ import annotations

from finetune.errors import FinetuneError
from finetune.recipe.schema import Recipe
from modelfiles.folder.model_folder import ModelFolder

QWEN_VL = ("qwen3_vl", "qwen2_5_vl", "qwen2_vl")
# What another family's recipe must not ask for, by key: the values it may have, and what would be needed.
ONLY = {
    "stage": (("sft",), "only the Qwen-VL families learn from preferences; set stage: sft"),
    "finetuning_type": (("lora",), "only adapters have been proven there; set finetuning_type: lora"),
    "freeze_language_model": ((False,), "adapters go into its language model"),
    "freeze_vision_tower": ((True,), "its vision tower is not trained"),
    "freeze_multi_modal_projector": ((True,), "its projector is not trained"),
    "additional_target": ((None, ""), "only adapters have been proven there; unset it"),
    "packing": ((False,), "nothing known here keeps the rows apart in its attention; unset it"),
    "neftune_noise_alpha": ((None,), "the noise would have to go into its own forward pass; unset it"),
    "image_max_pixels": ((None,), "its processor sizes images by rules of its own; unset it"),
    "image_min_pixels": ((None,), "its processor sizes images by rules of its own; unset it"),
    "cutoff_policy": (("drop", "error"), "its processor sizes images by rules of its own; set drop or error"),
    "fsdp": ((None,), "only DDP can share its batches out; unset it"),
}


def refuse_unsupported(folder: ModelFolder) -> None:
    """Raises FinetuneError if the folder is of no model that can be trained."""
    if folder.model_type in QWEN_VL:
        return
    from transformers import __version__
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    what = f"{folder.path} is a {folder.model_type!r} model"
    if folder.model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise FinetuneError(
            f"{what}, which transformers {__version__} does not load as a vision-language model; supported are "
            f"{', '.join(QWEN_VL)}, and others that it loads as image-text-to-text and that have a chat template."
        )
    if folder.chat_template is None:
        raise FinetuneError(
            f"{what} without a chat template, so nothing says how its chats are written; use an instruction-tuned "
            "model that has one."
        )
    if not any((folder.path / name).exists() for name in ("preprocessor_config.json", "processor_config.json")):
        raise FinetuneError(f"{what} without a preprocessor_config.json or processor_config.json; copy the base's.")


def refuse_keys(folder: ModelFolder, recipe: Recipe) -> None:
    """Raises FinetuneError if the recipe asks a model outside the Qwen-VL families for what only those can do."""
    if recipe.per_device_train_batch_size == "auto":
        raise FinetuneError(
            f"per_device_train_batch_size: auto is for the Qwen-VL families; what {folder.model_type!r} models need is "
            "not estimated: set a number of rows."
        )
    for key, (allowed, why) in ONLY.items():
        value = getattr(recipe, key)
        if value not in allowed:
            raise FinetuneError(
                f"{key}: {str(value).lower()} is for the Qwen-VL families; {folder.path} is a {folder.model_type!r} "
                f"model: {why}."
            )
