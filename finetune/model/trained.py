"""The weights that a run trains: which they are, how they are saved and put back.

Adapters are saved in PEFT's format. `freeze` and `full` save the trained weights alone, whole and in float32, under the
names that transformers gives them in memory, as trained_weights.safetensors; merging puts either into the base's files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finetune.errors import FinetuneError
from finetune.model.base import dropout, old_names_allowed
from finetune.model.sharding import gather_full
from finetune.model.targets import is_tied, tie

ADAPTER_CONFIG, ADAPTER, TRAINED_WEIGHTS = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "trained_weights.safetensors",
)


def trained_state(model: Any) -> dict[str, Any]:
    """The trained weights by the names in their file, on the CPU. Under FSDP all processes must call it."""
    from peft import PeftModel, get_peft_model_state_dict

    if isinstance(model, PeftModel):
        state = get_peft_model_state_dict(model, save_embedding_layers=False)
    else:
        state = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {name: gather_full(tensor).contiguous() for name, tensor in state.items()}


def save_trained(model: Any, state: dict[str, Any], path: Path) -> None:
    """Writes `state`, the model's trained_state, deterministically; for an adapter its configuration too."""
    from safetensors.torch import save_file

    config = getattr(model, "peft_config", None)
    save_file(state, path / (TRAINED_WEIGHTS if config is None else ADAPTER), metadata={"format": "pt"})
    if config is not None:
        values = config["default"].to_dict() | {"inference_mode": True}
        values = {key: sorted(value) if isinstance(value, set) else value for key, value in values.items()}
        values["target_modules"] = sorted(values["target_modules"])
        text = json.dumps(values, indent=2, sort_keys=True) + "\n"
        (path / ADAPTER_CONFIG).write_text(text, encoding="utf-8")


def restore_trained(model: Any, path: Path) -> None:
    """Puts the trained weights of a folder back into the model that trains them. Raises FinetuneError."""
    from safetensors.torch import load_file

    if hasattr(model, "peft_config"):
        from peft import set_peft_model_state_dict

        result = set_peft_model_state_dict(model, load_file(path / ADAPTER))
        if result.unexpected_keys:
            raise FinetuneError(f"{path} has adapter tensors the model lacks, such as {result.unexpected_keys[0]}.")
    else:
        _copy_trained_weights(model, path)


def load_trained(model: Any, path: str | Path) -> Any:
    """The base with what a run trained: wrapped in its adapter, or with its whole weights. Raises FinetuneError."""
    from peft import PeftModel

    path = Path(path)
    if (path / TRAINED_WEIGHTS).is_file():
        _copy_trained_weights(model, path)
        return model
    for name in (ADAPTER_CONFIG, ADAPTER):
        if not (path / name).is_file():
            raise FinetuneError(f"adapter_name_or_path: {path} has no {name}; give the folder of a trained adapter.")
    tied = is_tied(model)
    try:
        with old_names_allowed():
            wrapped = PeftModel.from_pretrained(model, path, is_trainable=False)
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        message = str(error).splitlines()[0][:200]
        raise FinetuneError(f"The adapter {path} does not fit the base model: {message}") from None
    if tied:
        tie(model)
    wrapped.train()
    dropout(wrapped, False)
    return wrapped


def _copy_trained_weights(model: Any, path: Path) -> None:
    from safetensors.torch import load_file

    parameters = dict(model.named_parameters())
    for name, tensor in load_file(path / TRAINED_WEIGHTS).items():
        if name not in parameters or parameters[name].shape != tensor.shape:
            raise FinetuneError(
                f"{path / TRAINED_WEIGHTS}: {name} does not fit the base model (quantised or another one?)."
            )
        parameters[name].data.copy_(tensor)
