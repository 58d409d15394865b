"""Which layers get adapters and which weights are trained whole."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Sequence
from typing import Any

import torch

from finetune.errors import FinetuneError
from finetune.model.base import old_names_allowed
from finetune.model.structure import language_model, vision_parts
from finetune.recipe.schema import Recipe
from modelfiles.folder.model_folder import ModelFolder

LAYER = re.compile(r"model\.language_model\.layers\.(\d+)\.(.+)")


def part_of(name: str, vision: Collection[str]) -> str:
    """The key that freezes a module or parameter: LLaMA-Factory's division, DeepStack's mergers to the vision tower.

    vision: the names of structure.vision_parts.
    """
    if name.startswith("model.visual.merger."):
        return "freeze_multi_modal_projector"
    outside = any(name.startswith(f"{part}.") for part in vision)
    return "freeze_vision_tower" if outside else "freeze_language_model"


def make_trainable(model: Any, recipe: Recipe, adapted: Any | None = None) -> Any:
    """Makes what the recipe trains trainable, in float32; the model, wrapped in PEFT for LoRA. Raises FinetuneError.

    adapted: the model with what an earlier training left, see trained.go_on_from.
    """
    if recipe.finetuning_type == "lora":
        wrapped = add_adapters(model, recipe) if adapted is None else adapted
    else:
        wrapped = _unfreeze(model, recipe)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return wrapped


def add_adapters(model: Any, recipe: Recipe) -> Any:
    """Wraps the model in PEFT with fresh float32 LoRA adapters on the recipe's targets. Raises FinetuneError."""
    from peft import LoraConfig

    if recipe.use_dora and recipe.quantization_bit and not torch.cuda.is_available():
        raise FinetuneError("use_dora on a 4-bit base needs a GPU: PEFT dequantises there; unset quantization_bit.")
    extra = _additional_targets(model, recipe)
    targets = [name for name in lora_targets(model, recipe) if name not in extra]
    config = LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.lora_dropout,
        use_rslora=recipe.use_rslora,
        use_dora=recipe.use_dora,
        target_modules=targets,
        modules_to_save=extra or None,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(recipe.seed)
    return wrap(model, config)


def wrap(model: Any, config: Any) -> Any:
    """The model in PEFT by a LoraConfig; tied to its embeddings, its output stays so."""
    from peft import get_peft_model

    tied = is_tied(model)
    with old_names_allowed(), warnings.catch_warnings():
        # Newer PEFT has ensure_weight_tying for what `_tie` does under all of its versions.
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")
        wrapped = get_peft_model(model, config)
    if tied:
        _tie(model)
    return wrapped


def lora_targets(model: Any, recipe: Recipe) -> list[str]:
    """Names of the linears that get adapters, in the parts that are not frozen."""
    vision = vision_parts(model)
    linears = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and name != "lm_head"
        and ".patch_embed." not in name  # a convolution in the base's files
        and not getattr(recipe, part_of(name, vision))
    ]
    if recipe.lora_target == "all":
        return linears
    names = sorted({name.rpartition(".")[2] for name in linears})
    if re.fullmatch(r"[\w., -]+", recipe.lora_target):
        wanted = [part.strip() for part in recipe.lora_target.split(",") if part.strip()]
        for want in wanted:
            if not _named(linears, want):
                raise FinetuneError(
                    f"lora_target: the parts that are not frozen have no linear {want!r}; they have {', '.join(names)}."
                )
        return [name for name in linears if any(_named([name], want) for want in wanted)]
    try:
        chosen = [name for name in linears if re.fullmatch(recipe.lora_target, name)]
    except re.error as error:
        raise FinetuneError(f"lora_target: {recipe.lora_target} is not a regular expression: {error}.") from None
    if not chosen:
        raise FinetuneError(
            f"lora_target: {recipe.lora_target} matches no linear; they are named like {linears[0]}, and the last "
            f"parts are {', '.join(names)}."
        )
    return chosen


def experts_note(folder: ModelFolder, recipe: Recipe) -> str:
    """What of a mixture of experts gets adapters and 4 bits, in a sentence; "" for a model without experts.

    bitsandbytes and PEFT's target_modules see linear layers alone. Experts are three-dimensional parameters, and most
    of such a model's weights. Read from headers and an empty model. Raises FinetuneError.
    """
    if not any(len(info.shape) == 3 and ".experts." in name for name, info in folder.tensors.items()):
        return ""
    from transformers import AutoConfig, AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder.path, local_files_only=True))
    layers = language_model(model).layers
    weights = sum(parameter.numel() for parameter in layers.parameters())
    linears = sum(module.weight.numel() for module in layers.modules() if isinstance(module, torch.nn.Linear))
    adapted = sum(model.get_submodule(name).weight.numel() for name in lora_targets(model, recipe))
    said = (
        f"{folder.architecture} is a mixture of experts: adapters are on {100 * adapted / weights:.0f} % of its weights"
    )
    if recipe.quantization_bit == 4:
        said += f" and {100 * linears / weights:.0f} % are in 4 bits"
    return f"{said}; the experts are no linear layers, so they stay as they are, in 16 bits."


def _named(names: Sequence[str], want: str) -> list[str]:
    return [name for name in names if name == want or name.endswith(f".{want}")]


def _additional_targets(model: Any, recipe: Recipe) -> list[str]:
    """Full names of the modules of `additional_target`; of tied embeddings, the input's alone."""
    modules = dict(model.named_modules())
    found: list[str] = []
    for want in (recipe.additional_target or "").split(","):
        if not want.strip():
            continue
        names = _named(list(modules), want.strip())
        if not names:
            raise FinetuneError(f"additional_target: the model has no module {want.strip()!r}.")
        for name in names:
            if not any(p.is_floating_point() for p in modules[name].parameters()):
                raise FinetuneError(f"additional_target: {name} is in 4 bits, which cannot be trained; adapters can.")
        found += names
    if "lm_head" in found and is_tied(model):
        found.remove("lm_head")
        found += [name for name in modules if name.endswith(".embed_tokens")]
    return list(dict.fromkeys(found))


def is_tied(model: Any) -> bool:
    return model.lm_head.weight is model.get_input_embeddings().weight


def _tie(model: Any) -> None:
    """Ties the output to the embeddings again, if PEFT made a copy of them to train.

    Untied, the merged model would need an lm_head that the base's files and configuration do not have.
    """
    embeddings = model.get_input_embeddings()
    if hasattr(embeddings, "modules_to_save"):
        model.lm_head.weight = embeddings.modules_to_save["default"].weight


def _unfreeze(model: Any, recipe: Recipe) -> Any:
    """Marks whole weights as trainable: all of the parts that are not frozen, or with `freeze` some layers of them."""
    layers = len(model.model.language_model.layers)
    count = recipe.freeze_trainable_layers
    chosen = range(layers)[-count:] if count > 0 else range(layers)[:-count]
    wanted = [part.strip() for part in recipe.freeze_trainable_modules.split(",")]
    used, vision = set(), vision_parts(model)
    for name, parameter in model.named_parameters():
        if getattr(recipe, part_of(name, vision)):
            continue
        if recipe.finetuning_type == "freeze" and part_of(name, vision) == "freeze_language_model":
            layer = LAYER.fullmatch(name)
            if layer is None or int(layer[1]) not in chosen:
                continue
            here = {want for want in wanted if want == "all" or want in layer[2].split(".")}
            if not here:
                continue
            used |= here
        parameter.requires_grad_(True)
    if recipe.finetuning_type == "freeze" and not recipe.freeze_language_model and used != set(wanted):
        missing = ", ".join(sorted(set(wanted) - used))
        raise FinetuneError(f"freeze_trainable_modules: the layers have no {missing}; `all` trains all their modules.")
    return model
