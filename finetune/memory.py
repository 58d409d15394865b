"""How much GPU memory training takes, from config.json, safetensors headers and the recipe alone.

Memory is what stands all the time (weights, trained parameters, their gradients and the optimiser's states) and what
the heaviest moment adds: the vision tower, the loss, or the backward pass. Bytes a token were derived from what
autograd keeps in transformers' decoder layers with PEFT's adapters, and checked against measured peaks
(`python -m benchmarks.finetune_memory`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from finetune.cards import Card
from finetune.images import ImageBank
from finetune.recipe import Recipe
from finetune.template import Encoded
from modelfiles.folder import ModelFolder

GIB = 2**30
LINEAR = re.compile(r"^(?!.*visual).*layers\.\d+\..*_proj\.weight$")
# Two constants are fitted, to the 13 peaks in benchmarks/results/finetune_memory.json; all come out within 4 %.
# WORKSPACE: cuBLAS's workspaces (65 MiB are still allocated when a run has ended), small buffers, the next images of a
# step: a median of 93 MiB allocated beyond the tensors counted here; the rest is cached blocks that fit nothing.
# FRAGMENTATION: of what comes and goes within a step. What the layers keep for the backward pass is laid down once and
# freed in turn, so it leaves few gaps: above what stands, reserved was 1.08 of allocated in the recipes without
# checkpointing, which are nearly all such tensors, and 1.16 to 1.43 of it in those with checkpointing.
WORKSPACE, FRAGMENTATION = 0.25 * GIB, 0.35
# Bytes a logit: log-probabilities, their gradient and the logits' gradient, in float32 (4 long answers a micro-batch
# allocated 5,283 MiB, 5,279 counted). The allocator keeps about as much again in blocks that do not fit, as every
# micro-batch has another number of label tokens (there 3,257 MiB, where the logits' tensors have 2,733).
LOGITS = 3 * 4


@dataclass(frozen=True)
class Load:
    """Heaviest micro-batch: rows, tokens (padded), label tokens, images' and videos' tokens, patches for the tower."""

    rows: int
    tokens: int
    labels: int
    image_tokens: int
    patches: int


@dataclass(frozen=True)
class Estimate:
    """Bytes. standing: by what they are for; moments: what each moment adds at its peak; reserved: the whole."""

    standing: dict[str, int]
    moments: dict[str, int]
    reserved: int


def heaviest_load(
    rows: Sequence[Encoded], recipe: Recipe, bank: ImageBank, most: int | None = None, frame_most: int | None = None
) -> Load:
    """The micro-batch with the most tokens that the recipe can make of the rows.

    most, frame_most: pixels that an image and a video's frame may have.
    """
    limits = bank.limits
    grids = [bank.resized(index, most, frame_most) for index in range(len(bank.grids))]
    saved = [bank.tokens(index) - limits.tokens(grid) for index, grid in enumerate(grids)]
    lengths = [len(row) - sum(saved[index] for index in row.images) for row in rows]
    size = min(recipe.per_device_train_batch_size, len(rows))
    heaviest = sorted(range(len(rows)), key=lambda number: -lengths[number])[:size]
    images = [image for number in heaviest for image in rows[number].images]
    return Load(
        rows=size,
        tokens=size * lengths[heaviest[0]],
        labels=sum(sorted((int(row.learnt.sum()) for row in rows), reverse=True)[:size]),
        image_tokens=sum(limits.tokens(grids[image]) for image in images),
        patches=sum(prod(grids[image]) for image in set(images)),
    )


def changes_that_fit(
    folder: ModelFolder, recipe: Recipe, rows: Sequence[Encoded], bank: ImageBank, card: Card
) -> dict[str, Any] | None:
    """The keys to change so that training fits the card, what harms least first; {} if it fits, None if none help."""
    changes: dict[str, Any] = {}

    def fits() -> bool:
        changed = recipe.model_copy(update=changes)
        load = heaviest_load(rows, changed, bank, changes.get("image_max_pixels"), changes.get("video_max_pixels"))
        return estimate(folder, changed, load, card).reserved <= card.gib * GIB

    for change in _changes(recipe, bank):
        if fits():
            return changes
        changes |= change
    return changes if fits() else None


def _changes(recipe: Recipe, bank: ImageBank) -> Iterator[dict[str, Any]]:
    if recipe.disable_gradient_checkpointing:
        yield {"disable_gradient_checkpointing": False}
    rows = recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps
    size = recipe.per_device_train_batch_size
    while size > 1:
        size //= 2
        yield {"per_device_train_batch_size": size, "gradient_accumulation_steps": -(-rows // size)}
    if recipe.quantization_bit is None:
        yield {"quantization_bit": 4}
    sizes = [rows * columns * bank.limits.patch**2 for _, rows, columns in bank.grids]
    pixels = max((size for index, size in enumerate(sizes) if index in bank.clips), default=0)
    while pixels // 2 >= 64 * 64:
        pixels //= 2
        yield {"video_max_pixels": pixels}
    pixels = max((size for index, size in enumerate(sizes) if index not in bank.clips), default=0)
    while pixels // 2 >= max(bank.limits.least, 64 * 64):
        pixels //= 2
        yield {"image_max_pixels": pixels}


def estimate(folder: ModelFolder, recipe: Recipe, load: Load, card: Card) -> Estimate:
    """Peak memory of training on the card with the heaviest micro-batch `load`."""
    text, vision = folder.text_config, folder.vision_config
    hidden, inner, layers = text["hidden_size"], text["intermediate_size"], text["num_hidden_layers"]
    head = text.get("head_dim") or hidden // text["num_attention_heads"]
    query, key = head * text["num_attention_heads"], head * text["num_key_value_heads"]
    four_bit, lora = recipe.quantization_bit == 4, recipe.finetuning_type == "lora"
    standing = _standing(folder, recipe)

    # Bytes a token that autograd keeps of one decoder layer: 16-bit tensors are 2, float32 ones 4, a dropout mask 1.
    norms = 4 * 2 * hidden + (4 * (query + key) if folder.model_type == "qwen3_vl" else 0)
    flash = card.capability >= (8, 0)
    attention = 2 * query + 2 * 2 * (key if flash else query) + 2 * query  # queries, keys and values, output
    gated = 3 * 2 * inner  # gate, its SiLU, up
    if lora and recipe.lora_dropout:
        inputs = 3 * (3 * hidden + query + 2 * hidden + inner)  # a copy and a mask for each adapter
    elif four_bit or not lora:
        inputs = 2 * (hidden + hidden + inner)  # the input itself, shared by those that read it
    else:
        inputs = 2 * (3 * hidden + query + 2 * hidden + inner)  # a copy for each adapter: PEFT goes by float32
    kept = norms + attention + gated + inputs
    # What the moment at the peak needs besides: gradients, and PEFT's float32 inputs where nothing is in 4 bits.
    goes_by_float32 = lora and not four_bit
    if recipe.disable_gradient_checkpointing:
        behind = kept * layers
        working = 8 * inner + (8 * hidden if recipe.lora_dropout else 0) if goes_by_float32 else 8 * hidden
    else:
        behind = 2 * hidden * layers
        working = kept
        if goes_by_float32:
            working += 10 * inner + 12 * hidden if recipe.lora_dropout else 6 * inner + 10 * hidden
        else:
            working += inner + 4 * hidden if recipe.lora_dropout else 2 * inner + 5 * hidden // 2
    deep = 1 + len(vision.get("deepstack_visual_indexes") or [])
    features = 2 * deep * load.image_tokens * hidden
    whole = 0 if lora else standing["trained parameters"] // 2  # their 16-bit copies, while autocast is on
    tower = load.patches * tower_bytes(vision)
    if not (recipe.freeze_vision_tower and recipe.freeze_multi_modal_projector):
        features += load.patches * _kept_by_tower(vision, bool(recipe.disable_gradient_checkpointing))
    kept_by_layers, logits = load.tokens * behind, LOGITS * load.labels * text["vocab_size"]
    moments = {
        "vision tower": tower,
        "loss": kept_by_layers + 6 * load.tokens * hidden + logits + features + whole,
        "backward": kept_by_layers + load.tokens * working + features + whole + (2 * hidden * inner if four_bit else 0),
    }
    # What each moment's blocks take beyond its tensors.
    gaps = {
        "vision tower": FRAGMENTATION * tower,
        "loss": FRAGMENTATION * (moments["loss"] - kept_by_layers - logits) + logits,
        "backward": FRAGMENTATION * (moments["backward"] - kept_by_layers),
    }
    highest = max(moments[name] + gaps[name] for name in moments)
    return Estimate(standing, moments, round(sum(standing.values()) + highest + WORKSPACE))


def _standing(folder: ModelFolder, recipe: Recipe) -> dict[str, int]:
    """Bytes that stand all the time: frozen weights; what is trained, in float32; gradients; the optimiser's states."""
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
    """Whether a tensor is the weight of a linear that gets an adapter."""
    module = name.removesuffix(".weight")
    embeds = "embed" in name or module == "lm_head"
    if recipe.finetuning_type != "lora" or len(shape) != 2 or embeds or module == name or _is_frozen(name, recipe):
        return False
    if recipe.lora_target == "all":
        return True
    if re.fullmatch(r"[\w., -]+", recipe.lora_target):
        return any(f".{module}".endswith(f".{want.strip()}") for want in recipe.lora_target.split(","))
    return re.fullmatch(recipe.lora_target, module) is not None


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


def tower_bytes(vision: dict[str, Any]) -> int:
    """Bytes a patch that the frozen tower needs at once.

    At the peak, in a block's rotary embedding, queries and keys are in float32 several times; the pixels wait beside.
    """
    pixels = 3 * 2 * vision["patch_size"] ** 2  # channels and the two frames that an image counts for
    return int(41 * (vision.get("embed_dim") or vision["hidden_size"]) + 6 * pixels)


def _kept_by_tower(vision: dict[str, Any], whole: bool) -> int:
    """Bytes a patch that autograd keeps of a tower that is trained: blocks' inputs, or (`whole`) all they compute."""
    width = vision.get("embed_dim") or vision["hidden_size"]
    inner = vision.get("intermediate_size") or int(vision.get("mlp_ratio", 4) * width)
    return int(vision["depth"] * (28 * width + 6 * inner if whole else 2 * width))
