"""Why a recipe cannot be used, in words: unknown keys with a suggestion, unsupported values with what to do instead."""

from __future__ import annotations

import difflib
from typing import Any

from finetune.recipe.schema import Recipe

# Keys of LLaMA-Factory's that people have in their files and that are not supported (yet).
UNSUPPORTED = {
    "badam_mode", "cache_dir", "compute_accuracy", "data_seed", "deepspeed", "default_system",
    "enable_liger_kernel", "enable_thinking", "export_hub_model_id", "export_quantization_bit",
    "galore_rank", "mask_history", "neat_packing", "packing",
    "pissa_init", "pref_beta", "push_to_hub", "rope_scaling", "shift_attn", "streaming", "tokenized_path",
    "train_on_prompt", "use_unsloth_gc",
}  # fmt: skip


def recipe_warnings(values: dict[str, Any]) -> list[str]:
    warnings = []
    if values.get("quantization_method") == "bitsandbytes":
        warnings.append(
            "quantization_method: bitsandbytes is read as bnb; LLaMA-Factory from v0.9.3 on silently does not quantise."
        )
    sampled = [f"{key}: {values[key]}" for key in ("temperature", "top_p", "top_k") if key in values]
    if values.get("temperature") and values.get("do_sample") is not False:
        warnings.append(f"{', '.join(sampled)} would sample, so scores would change from run to run; they are ignored.")
    return warnings


def explain_recipe_error(key: str, problem: Any) -> str:
    """One sentence for one of pydantic's errors."""
    kind, given = problem["type"], problem["input"]
    if kind == "extra_forbidden":
        if key in UNSUPPORTED:
            return "this LLaMA-Factory key is not supported yet; remove it."
        near = difflib.get_close_matches(key, [*Recipe.model_fields, *UNSUPPORTED], n=1)
        return f"unknown key; did you mean {near[0]}?" if near else "unknown key; remove it."
    if kind == "missing":
        return f"the recipe lacks this key: {Recipe.model_fields[key].description}"
    if kind == "literal_error":
        expected = str(problem["ctx"]["expected"])
        near = difflib.get_close_matches(str(given), expected.replace("'", "").replace(" or ", ", ").split(", "), n=1)
        return f"{given!r} is not supported{f'; did you mean {near[0]}?' if near else ''} (choose {expected})."
    if kind == "value_error":
        return f"{problem['ctx']['error']}."
    message = problem["msg"][0].lower() + problem["msg"][1:]
    return f"{message}, not {given!r}."
