"""The parts of a vision-language model, found by where its input embeddings are rather than by names."""

from __future__ import annotations

from typing import Any

import torch

from finetune.errors import FinetuneError
from modelfiles.folder.model_folder import ModelFolder


def language_model_name(model: Any) -> str:
    """The name of the module that holds the input embeddings, such as `model.language_model`. Raises FinetuneError.

    `model` is the *ForConditionalGeneration module, here and below.
    """
    embeddings = model.get_input_embeddings()
    name = next((name for name, module in model.named_modules() if module is embeddings), "").rpartition(".")[0]
    if "." not in name:
        raise FinetuneError(
            f"{type(model).__name__} keeps its language model and its vision tower in one module, so adapters cannot "
            "be put into one of them; use another model."
        )
    return name


def refuse_structure(model: Any) -> None:
    """Raises FinetuneError if the model is not a decoder with an output head, beside its vision."""
    head = model.get_output_embeddings()
    if model.config.is_encoder_decoder or head is None or head is not getattr(model, "lm_head", None):
        raise FinetuneError(f"{type(model).__name__} is no decoder with an lm_head; use another model.")
    if not vision_parts(model):
        raise FinetuneError(f"{type(model).__name__} has no vision tower beside its language model.")


def language_model(model: Any) -> Any:
    return model.get_submodule(language_model_name(model))


def vision_parts(model: Any) -> dict[str, Any]:
    """Everything beside the language model and the output head by name: vision tower, projector."""
    parts: dict[str, Any] = {}
    path = ""
    for step in language_model_name(model).split("."):
        here = model.get_submodule(path) if path else model
        beside = {f"{path}.{name}".lstrip("."): child for name, child in here.named_children() if name != step}
        parts |= {name: child for name, child in beside.items() if child is not model.get_output_embeddings()}
        path = f"{path}.{step}".lstrip(".")
    return parts


def trains_vision(model: Any) -> bool:
    """Whether anything of the vision is trained."""
    return any(p.requires_grad for part in vision_parts(model).values() for p in part.parameters())


def not_quantised(folder: ModelFolder) -> list[str]:
    """Names of the modules that stay in 16 bits when the language model is put into 4: all but its layers.

    Raises FinetuneError.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder.path, local_files_only=True))
    return [*vision_parts(model), "lm_head"]
