"""Loads the base model that a recipe names, quantised as it says."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from finetune.errors import FinetuneError
from finetune.model.device import pick_attention
from finetune.model.structure import language_model, not_quantised, refuse_structure, trains_vision, vision_parts
from finetune.model.supported import QWEN_VL
from finetune.recipe.schema import Recipe
from modelfiles.folder.model_folder import ModelFolder


def load_base(folder: ModelFolder, recipe: Recipe, device: torch.device, dtype: torch.dtype) -> Any:
    """The base with frozen weights; its language model's linears in NF4 if the recipe asks for 4 bits."""
    # bitsandbytes looks for an optional kernel from the hub when it is imported and warns if there is none.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    from transformers import AutoModelForImageTextToText, BitsAndBytesConfig
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    known = folder.model_type in QWEN_VL
    settings: dict[str, Any] = {"dtype": dtype, "local_files_only": True}
    if recipe.flash_attn == "disabled":
        settings["attn_implementation"] = "eager"
    elif known:  # some parts of other families have no PyTorch attention: transformers knows
        settings["attn_implementation"] = pick_attention(device, recipe.packing)
    if recipe.quantization_bit == 4:
        settings["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=recipe.quantization_type,
            bnb_4bit_use_double_quant=recipe.double_quantization,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=["model.visual", "visual", "lm_head"] if known else not_quantised(folder),
        )
    if device.type == "cuda" and not recipe.fsdp:  # FSDP moves a layer at a time, as it shards it
        settings["device_map"] = {"": device.index or 0}
    model, info = AutoModelForImageTextToText.from_pretrained(folder.path, output_loading_info=True, **settings)
    for problem in ("missing_keys", "mismatched_keys"):  # which transformers fills with random numbers
        if info.get(problem):
            raise FinetuneError(
                f"{folder.path}: transformers finds no weights for {min(map(str, info[problem]))} in it."
            )
    model.requires_grad_(False)
    # bitsandbytes repacks a 4-bit layer for bfloat16 inference the first time it runs in eval mode on a CPU, and
    # cannot train it afterwards. Nothing in these models but the adapters' dropout depends on the mode, once other
    # families' is off.
    model.train()
    if not known:
        refuse_structure(model)
        _no_dropout(model)
    if recipe.quantization_bit == 4 and not four_bit_layers(model):
        raise FinetuneError("quantization_bit is 4 but no layer was quantised; check that bitsandbytes works here.")
    return model


def _no_dropout(model: Any) -> None:
    """Turns off the dropout that a base's configuration may ask for; adapters get theirs from the recipe."""
    for part in vision_parts(model).values():
        part.eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0


def checkpoint_activations(model: Any, kept_layers: int = 0) -> None:
    """Keeps only each layer's input for the backward pass and computes the rest again.

    kept_layers: of so many of the language model's layers, the last ones, everything is kept all the same.
    """
    with old_names_allowed():
        for part in [language_model(model), *(vision_parts(model).values() if trains_vision(model) else [])]:
            part.gradient_checkpointing_enable({"use_reentrant": False})
    for layer in language_model(model).layers[-kept_layers:] if kept_layers else []:
        layer.gradient_checkpointing = False


def keep_activations(model: Any) -> None:
    """Undoes `checkpoint_activations`; without it, generation has its key-value cache."""
    with old_names_allowed():
        for part in [language_model(model), *vision_parts(model).values()]:
            if getattr(part, "is_gradient_checkpointing", False):
                part.gradient_checkpointing_disable()


def dropout(model: Any, on: bool) -> None:
    """Turns dropout on or off. The mode of the model as a whole must stay `train`, see load_base."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.train(on)


@contextmanager
def old_names_allowed() -> Iterator[None]:
    """transformers 5 warns of names that it will drop; PEFT and transformers 4.57 know no others."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def four_bit_layers(model: Any) -> list[str]:
    """Names of the layers whose weights are in 4 bits."""
    from bitsandbytes.nn import Linear4bit

    return [name for name, module in model.named_modules() if isinstance(module, Linear4bit)]
