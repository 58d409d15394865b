"""What is wrong with a recipe, in words: unknown keys with a suggestion, values with what to use instead."""

from __future__ import annotations

import difflib
from typing import Any

from finetune.recipe.llamafactory import advice, known_defaults
from finetune.recipe.schema import Recipe

# What to use instead of values that other trainers know.
INSTEAD = {
    "stage": "another trainer does pre-training, reward models, KTO and PPO",
    "pref_loss": "the other losses are not supported",
    "finetuning_type": "OFT adapters are not supported",
    "quantization_bit": "4 bits (NF4) are what QLoRA trains on; unset it for 16 bits",
    "flash_attn": "PyTorch's own attention is as quick for these models and needs no package",
    "lr_scheduler_type": "the other schedules are not supported",
    "optim": "the other optimizers are not supported",
    "mix_strategy": "the other strategies are not supported",
    "use_unsloth": "its kernels are not needed",
    "export_legacy_format": "other tools read safetensors too",
}


def recipe_warnings(values: dict[str, Any]) -> list[str]:
    warnings = []
    if values.get("quantization_method") == "bitsandbytes":
        warnings.append(
            "quantization_method: bitsandbytes is read as bnb; LLaMA-Factory from v0.9.3 on silently does not quantise."
        )
    if values.get("packing") is True or values.get("neat_packing") is True:
        warnings.append(
            "packing: per_device_train_batch_size counts rows here; LLaMA-Factory counts packs of cutoff_len tokens, "
            "so its optimiser steps have more rows at the same value."
        )
    sampled = [f"{key}: {values[key]}" for key in ("temperature", "top_p", "top_k") if key in values]
    if values.get("do_sample") and not sampled:
        warnings.append("do_sample: true is ignored: answers are greedy, so that scores repeat.")
    if values.get("temperature") and values.get("do_sample") is not False:
        warnings.append(f"{', '.join(sampled)} would sample, so scores would change from run to run; they are ignored.")
    return warnings


def explain_recipe_error(key: str, problem: Any) -> str:
    """One sentence for one of pydantic's errors."""
    kind, given = problem["type"], problem["input"]
    if kind == "extra_forbidden":
        if instead := advice(key):
            return f"this LLaMA-Factory key is not supported yet; {instead}."
        near = difflib.get_close_matches(key, [*Recipe.model_fields, *known_defaults()], n=1)
        return f"unknown key; did you mean {near[0]}?" if near else "unknown key; remove it."
    if kind == "missing":
        return f"the recipe lacks this key: {Recipe.model_fields[key].description}"
    if kind == "literal_error":
        expected = str(problem["ctx"]["expected"])
        near = difflib.get_close_matches(str(given), expected.replace("'", "").replace(" or ", ", ").split(", "), n=1)
        reason = f": {INSTEAD[key]}" if key in INSTEAD and not near else ""
        return f"{given!r} is not supported{f'; did you mean {near[0]}?' if near else ''} (choose {expected}){reason}."
    if kind == "value_error":
        return f"{problem['ctx']['error']}."
    message = problem["msg"][0].lower() + problem["msg"][1:]
    return f"{message}, not {given!r}."
