"""The model: which dtype and why, the 4-bit base, and the forward pass used in training and scoring."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from finetune import attention
from finetune.batches import Batch
from finetune.errors import FinetuneError
from finetune.hub import local_model
from finetune.recipe import Recipe
from finetune.structure import language_model, not_quantised, refuse_structure, sees, vision_parts
from finetune.supported import QWEN_VL, refuse_unsupported
from modelfiles.folder import ModelFolder, ModelFolderError


def open_base(recipe: Recipe) -> ModelFolder:
    """The base model's folder. Raises FinetuneError if it cannot be used."""
    try:
        folder = ModelFolder.open(local_model(recipe.model_name_or_path))
        folder.tensors  # noqa: B018 - reads and checks every shard's header
    except ModelFolderError as error:
        raise FinetuneError(f"model_name_or_path: {error}") from None
    refuse_unsupported(folder)
    return folder


def pick_device() -> torch.device:
    """The GPU that is this process's, or the CPU."""
    return (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if torch.cuda.is_available() else torch.device("cpu")
    )


def pick_dtype(recipe: Recipe, device: torch.device) -> tuple[torch.dtype, str]:
    """The compute dtype and the reason, for the user.

    By compute capability: `torch.cuda.is_bf16_supported()` answers True on a T4, where bfloat16 is emulated.
    """
    if device.type == "cpu":
        return torch.float32, "float32: there is no GPU"
    return dtype_on(recipe, torch.cuda.get_device_capability(device), torch.cuda.get_device_name(device))


def dtype_on(recipe: Recipe, capability: tuple[int, int], name: str) -> tuple[torch.dtype, str]:
    """The same for a card of which only this is known. Raises FinetuneError if the recipe asks for what it lacks."""
    name = f"{name}, compute capability {capability[0]}.{capability[1]}"
    if capability < (8, 0):
        if recipe.bf16:
            raise FinetuneError(f"bf16 is set but {name} has no bfloat16 units; set fp16: true or neither.")
        return torch.float16, f"float16 with loss scaling: {name}, has no bfloat16 units"
    if recipe.fp16:
        return torch.float16, f"float16 with loss scaling: the recipe says so, although {name}, has bfloat16"
    return torch.bfloat16, f"bfloat16: {name}"


def pick_attention(device: torch.device) -> str:
    """PyTorch's attention, by a detour where it has no flash kernel."""
    no_flash = device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0)
    return attention.register() if no_flash else "sdpa"


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
        settings["attn_implementation"] = pick_attention(device)
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
    model = AutoModelForImageTextToText.from_pretrained(folder.path, **settings)
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


def checkpoint_activations(model: Any) -> None:
    """Keeps only each layer's input for the backward pass and computes the rest again."""
    with old_names_allowed():
        for part in [language_model(model), *(vision_parts(model).values() if sees(model) else [])]:
            part.gradient_checkpointing_enable({"use_reentrant": False})


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


def encode_images(model: Any, pixels: Any, grids: Any) -> Any:
    """[1 + D, tokens, hidden] features of images: the tower's output, then its D DeepStack features.

    `model` is the *ForConditionalGeneration module. Works with what transformers 4.57 (a tuple or a tensor) and 5 (an
    output object) return.
    """
    visual = model.model.visual
    out = visual(pixels.to(visual.dtype), grid_thw=grids)
    if isinstance(out, torch.Tensor):
        pooled, deep = out, []
    elif isinstance(out, tuple):
        pooled, deep = out[0], list(out[1])
    else:
        pooled, deep = out.pooler_output, list(getattr(out, "deepstack_features", None) or [])
    return torch.stack([pooled, *deep])


def hidden_states(model: Any, batch: Batch, features: Any | None, cache: Any | None = None, noise: float = 0.0) -> Any:
    """[B, L, hidden] last hidden states of the language model.

    `model` is the *ForConditionalGeneration module (adapters inside it work); features: [1 + D, image tokens, hidden];
    noise: NEFTune's alpha (arXiv:2310.05914): the text's embeddings get uniform noise of up to alpha / sqrt(L hidden).
    """
    core = model.model
    deepstack: dict[str, Any] = {}
    embeddings = core.get_input_embeddings()(batch.ids)
    if noise:
        most = noise / math.sqrt(embeddings.shape[1] * embeddings.shape[2])
        embeddings = embeddings + torch.empty_like(embeddings).uniform_(-most, most)
    if features is not None:
        # Features are in the order of the text, whether of an image or of a video.
        is_image = (batch.ids == model.config.image_token_id) | (batch.ids == model.config.video_token_id)
        embeddings = embeddings.masked_scatter(is_image[..., None], features[0].to(embeddings.dtype))
        if len(features) > 1:
            deepstack = {"visual_pos_masks": is_image, "deepstack_visual_embeds": list(features[1:])}
    return core.language_model(
        inputs_embeds=embeddings,
        position_ids=batch.positions,
        attention_mask=None if batch.attended is None else batch.attended.long(),
        past_key_values=cache,
        use_cache=cache is not None,
        **deepstack,
    ).last_hidden_state


class LabelLoss(torch.nn.Module):  # type: ignore[misc]
    """The summed cross entropy (float32) of a batch's label tokens; logits exist only at those positions.

    A module, so that DDP and FSDP can wrap it. `base` is the *ForConditionalGeneration module; noise: NEFTune's alpha,
    added only while `noisy` is true.
    """

    def __init__(self, base: Any, noise: float = 0.0) -> None:
        super().__init__()
        self.base, self.noise, self.noisy = base, noise, True

    def forward(self, batch: Batch, images: Any | None) -> Any:
        """images: the features of the batch's images, or their (pixels, grids) if the vision tower is trained."""
        if isinstance(images, tuple):
            images = encode_images(self.base, *images)
        states = hidden_states(self.base, batch, images, noise=self.noise if self.noisy else 0.0)
        logits = self.base.lm_head(states[batch.labelled]).float()
        return torch.nn.functional.cross_entropy(logits, batch.labels, reduction="sum")
