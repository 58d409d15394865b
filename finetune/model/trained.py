"""The weights that a run trains: which they are, how they are saved and put back.

Adapters are saved in PEFT's format. `freeze` and `full` save the trained weights alone, whole and in float32, under the
names that transformers gives them in memory, as trained_weights.safetensors; merging puts either into the base's files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.errors import FinetuneError
from finetune.model.base import dropout, old_names_allowed
from finetune.model.changes import plan_changes, read_trained
from finetune.model.targets import wrap
from finetune.model.tensors import gather_full
from finetune.model.trained_by import ADAPTER, ADAPTER_CONFIG, TRAINED_WEIGHTS
from finetune.recipe.schema import Recipe
from modelfiles.adapter.names import names_of_all_versions
from modelfiles.adapter.reader import PREFIX, Adapter, AdapterError, read_adapter
from modelfiles.folder.model_folder import ModelFolder


def trained_state(model: Any) -> dict[str, Any]:
    """The trained weights by the names in their file, on the CPU. Under FSDP all processes must call it."""
    from peft import PeftModel, get_peft_model_state_dict

    if isinstance(model, PeftModel):
        state = get_peft_model_state_dict(model, save_embedding_layers=False)
    else:
        state = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {name: gather_full(tensor).contiguous() for name, tensor in state.items()}


def save_trained(model: Any, state: dict[str, Any], path: Path) -> None:
    """Writes `state`, the model's trained_state, deterministically; for an adapter its configuration too.

    Raises OSError.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    config = getattr(model, "peft_config", None)
    file = path / (TRAINED_WEIGHTS if config is None else ADAPTER)
    try:
        save_file(state, file, metadata={"format": "pt"})
    except SafetensorError as error:  # what it makes of an OSError
        raise OSError(f"{file}: {error}") from None
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
    """The base with what a run trained, for answering: wrapped in its adapter, or with its whole weights.

    Raises FinetuneError unless everything in the folder finds its place in the model.
    """
    path = Path(path)
    if (path / TRAINED_WEIGHTS).is_file():
        _copy_trained_weights(model, path)
        return model
    wrapped = attach_adapter(model, path)
    wrapped.requires_grad_(False)
    wrapped.train()
    dropout(wrapped, False)
    return wrapped


def go_on_from(model: Any, recipe: Recipe, folder: ModelFolder) -> Any:
    """The model with what `adapter_name_or_path` trained, to be trained further as the recipe says.

    An adapter keeps its own rank, scale and targets. Raises FinetuneError if the recipe asks for others.
    """
    path = Path(str(recipe.adapter_name_or_path))
    trained = read_trained(path, folder)
    if not isinstance(trained, Adapter):
        if recipe.finetuning_type == "lora":
            raise FinetuneError(
                f"adapter_name_or_path: {path} holds whole weights, which lora cannot go on with; export them first, "
                "and train on the merged model."
            )
        plan_changes(folder, trained)
        _copy_trained_weights(model, path)
        return model
    if recipe.finetuning_type != "lora":
        raise FinetuneError(
            f"adapter_name_or_path: {path} is an adapter, which finetuning_type: {recipe.finetuning_type} cannot go on "
            "with; export it first, and train on the merged model."
        )
    own = {key: trained.config.get(key) for key in ("use_rslora", "use_dora")}
    own |= {"lora_rank": trained.rank, "lora_alpha": trained.config["lora_alpha"]}
    for key, value in own.items():
        asked = getattr(recipe, key)
        if key in recipe.model_fields_set and asked is not None and asked != (value or False):
            raise FinetuneError(f"{key}: {asked} is not that of the adapter {path}, {value}; remove the key.")
    plan_changes(folder, trained)
    return attach_adapter(model, path, recipe.lora_dropout)


def attach_adapter(model: Any, path: Path, lora_dropout: float = 0.0) -> Any:
    """The model wrapped in PEFT with the adapter in `path`, ready to be trained on.

    Modules are found under the names of any version of transformers. PEFT itself only warns when an adapter's names are
    those of another version, and goes on with matrices that change nothing. Raises FinetuneError.
    """
    from peft import LoraConfig, set_peft_model_state_dict
    from safetensors.torch import load_file

    try:
        adapter = read_adapter(path)
    except AdapterError as error:
        raise FinetuneError(f"adapter_name_or_path: {error}") from None
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    renamed = {name: _name_in(modules, name, path) for name in adapter.lora}
    renamed |= {name: _name_in(parameters, name, path) for name in adapter.saved}
    saved = [renamed[name] for name in adapter.saved]
    rank, alpha = adapter.rank, adapter.config["lora_alpha"]
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=lora_dropout,
        rank_pattern={renamed[n]: pair.rank for n, pair in adapter.lora.items() if pair.rank != rank},
        alpha_pattern={renamed[n]: pair.alpha for n, pair in adapter.lora.items() if pair.alpha != alpha},
        use_rslora=bool(adapter.config.get("use_rslora")),
        use_dora=bool(adapter.config.get("use_dora")),
        target_modules=[renamed[name] for name in adapter.lora],
        modules_to_save=_modules_of(saved, adapter.config.get("modules_to_save") or []) or None,
        task_type="CAUSAL_LM",
    )
    try:
        wrapped = wrap(model, config)
        with old_names_allowed():
            result = set_peft_model_state_dict(wrapped, _renamed_tensors(load_file(path / ADAPTER), renamed))
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        message = str(error).splitlines()[0][:200]
        raise FinetuneError(f"The adapter {path} does not fit the base model: {message}") from None
    unused = [*result.unexpected_keys, *(name for name in result.missing_keys if "lora_" in name)]
    if unused:
        raise FinetuneError(f"The adapter {path} does not fit the base model: {unused[0]} is in one of them only.")
    return wrapped


def _name_in(named: Mapping[str, Any], name: str, path: Path) -> str:
    """What the model calls a module or parameter of the adapter. Raises FinetuneError."""
    found = [candidate for candidate in names_of_all_versions(name) if candidate in named]
    if len(found) != 1:
        raise FinetuneError(f"The adapter {path} changes {name}, which the base model does not have; is that its base?")
    return found[0]


def _modules_of(parameters: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """The full names of the modules that `modules_to_save` names, from those of their parameters."""
    modules = []
    for name in parameters:
        for want in wanted:
            start = f".{name}.".find(f".{want}.")
            if start >= 0:
                modules.append(name[: start + len(want)])
    return list(dict.fromkeys(modules))


def _renamed_tensors(tensors: dict[str, Any], renamed: Mapping[str, str]) -> dict[str, Any]:
    """The adapter's tensors that the reader kept, under the names that PEFT gives the model's modules."""
    found = {}
    for name, tensor in tensors.items():
        module, lora, kind = name.removeprefix(PREFIX).partition(".lora_")
        if module in renamed:
            found[f"{PREFIX}{renamed[module]}{lora}{kind}"] = tensor
    return found


def _copy_trained_weights(model: Any, path: Path) -> None:
    from safetensors.torch import load_file

    parameters = dict(model.named_parameters())
    for name, tensor in load_file(path / TRAINED_WEIGHTS).items():
        if name not in parameters or parameters[name].shape != tensor.shape:
            raise FinetuneError(
                f"{path / TRAINED_WEIGHTS}: {name} does not fit the base model (quantised or another one?)."
            )
        parameters[name].data.copy_(tensor)
