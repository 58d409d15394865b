"""The memory that stays for the whole run: weights, adapters, gradients, optimizer states."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import prod

from finetune.errors import FinetuneError
from finetune.recipe.schema import Recipe
from modelfiles.folder.model_folder import ModelFolder

LINEAR = re.compile(r"^(?!.*visual).*layers\.\d+\..*_proj\.weight$")


def model_state_bytes(folder: ModelFolder, recipe: Recipe) -> dict[str, int]:
    """Bytes allocated for the whole run, by use. Trained weights, gradients and the optimiser are in float32."""
    four_bit = recipe.quantization_bit == 4
    small = frozen = trained = 0
    for name, info in folder.tensors.items():
        size = prod(info.shape)
        if recipe.finetuning_type != "lora" and _is_trained_whole(name, folder, recipe):
            trained += size
            continue
        if _has_adapter(name, info.shape, recipe):
            trained += recipe.lora_rank * sum(info.shape) + (info.shape[0] if recipe.use_dora else 0)
        if four_bit and LINEAR.match(name):
            small += size
        else:
            frozen += size
    return {
        "weights in 4 bits": round(small * nf4_bytes(recipe.double_quantization)),
        "weights in 16 bits": 2 * frozen,
        "trained parameters": 4 * trained,
        "gradients": 4 * trained,
        "optimiser": (2 if recipe.optim == "paged_adamw_8bit" else 8) * trained,
    }


def _is_frozen(name: str, recipe: Recipe) -> bool:
    if "visual.merger." in name:
        return recipe.freeze_multi_modal_projector
    return recipe.freeze_vision_tower if "visual." in name else recipe.freeze_language_model


def _has_adapter(name: str, shape: Sequence[int], recipe: Recipe) -> bool:
    """Whether a tensor is the weight of a linear that gets an adapter. Raises FinetuneError."""
    module = name.removesuffix(".weight")
    embeds = "embed" in name or module == "lm_head"
    if recipe.finetuning_type != "lora" or len(shape) != 2 or embeds or module == name or _is_frozen(name, recipe):
        return False
    if recipe.lora_target == "all":
        return True
    if re.fullmatch(r"[\w., -]+", recipe.lora_target):
        return any(f".{module}".endswith(f".{want.strip()}") for want in recipe.lora_target.split(","))
    try:
        return re.fullmatch(recipe.lora_target, module) is not None
    except re.error as error:
        raise FinetuneError(f"lora_target: {recipe.lora_target} is not a regular expression: {error}.") from None


def _is_trained_whole(name: str, folder: ModelFolder, recipe: Recipe) -> bool:
    if _is_frozen(name, recipe):
        return False
    if recipe.finetuning_type == "full" or "visual." in name:
        return True
    layer = re.search(r"layers\.(\d+)\.", name)
    layers, count = range(folder.text_config["num_hidden_layers"]), recipe.freeze_trainable_layers
    chosen = layers[-count:] if count > 0 else layers[:-count]
    modules = recipe.freeze_trainable_modules.split(",")
    return bool(layer and int(layer[1]) in chosen and (modules == ["all"] or set(modules) & set(name.split("."))))


def nf4_bytes(double: bool) -> float:
    """Bytes of a weight in NF4: half, and a scale for each 64; doubly quantised the scale is a byte (QLoRA, 3)."""
    return 0.5 + (1 + 4 / 256) / 64 if double else 0.5 + 4 / 64
