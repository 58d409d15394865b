"""The weights that a run trains: which they are, how they are saved and put back."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch

from finetune.errors import FinetuneError
from finetune.model import dropout, old_names_allowed
from finetune.recipe import Recipe

LANGUAGE_LINEARS = r"model\.language_model\.layers\.\d+\..*"


def add_adapters(model: Any, recipe: Recipe) -> Any:
    """Wraps the model in PEFT with fresh float32 LoRA adapters on the recipe's targets."""
    from peft import LoraConfig, get_peft_model

    if recipe.use_dora and recipe.quantization_bit and not torch.cuda.is_available():
        raise FinetuneError("use_dora on a 4-bit base needs a GPU: PEFT dequantises there; unset quantization_bit.")
    linears = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and re.fullmatch(LANGUAGE_LINEARS, name)
    ]
    names = sorted({name.rpartition(".")[2] for name in linears})
    wanted = names if recipe.lora_target == "all" else [part.strip() for part in recipe.lora_target.split(",")]
    for name in wanted:
        if name not in names:
            raise FinetuneError(f"lora_target: the language model has no {name!r}; it has {', '.join(names)}.")
    config = LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.lora_dropout,
        use_rslora=recipe.use_rslora,
        use_dora=recipe.use_dora,
        target_modules=[name for name in linears if name.rpartition(".")[2] in wanted],
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(recipe.seed)
    with old_names_allowed():
        return get_peft_model(model, config)


def load_adapter(model: Any, path: str | Path) -> Any:
    """Wraps the model in a trained adapter. Raises FinetuneError."""
    from peft import PeftModel

    path = Path(path)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (path / name).is_file():
            raise FinetuneError(f"adapter_name_or_path: {path} has no {name}; give the folder of a trained adapter.")
    try:
        with old_names_allowed():
            wrapped = PeftModel.from_pretrained(model, path, is_trainable=False)
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        message = str(error).splitlines()[0][:200]
        raise FinetuneError(f"The adapter {path} does not fit the base model: {message}") from None
    wrapped.train()
    dropout(wrapped, False)
    return wrapped


def save_adapter(peft_model: Any, path: Path) -> None:
    """Writes an adapter in PEFT's format: adapter_config.json and adapter_model.safetensors, deterministically."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    weights = get_peft_model_state_dict(peft_model, save_embedding_layers=False)
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()},
              path / "adapter_model.safetensors", metadata={"format": "pt"})  # fmt: skip
    config = peft_model.peft_config["default"].to_dict() | {"inference_mode": True}
    config = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    config["target_modules"] = sorted(config["target_modules"])
    (path / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_adapter_weights(peft_model: Any, path: Path) -> None:
    """Puts a checkpoint's adapter into the model, in float32 as saved."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    result = set_peft_model_state_dict(peft_model, load_file(path / "adapter_model.safetensors"))
    if result.unexpected_keys:
        raise FinetuneError(f"The adapter in {path} has tensors the model lacks, such as {result.unexpected_keys[0]}.")
