"""How much GPU memory training takes, from config.json, safetensors headers and the recipe alone.

Memory is what stands all the time (weights, trained parameters, their gradients and the optimiser's states) and what
the heaviest moment adds: the vision tower, the loss, or the backward pass. Bytes a token were derived from what
autograd keeps in transformers' decoder layers with PEFT's adapters, and checked against measured peaks
(`python -m benchmarks.finetune_memory`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from finetune.cards import Card
from finetune.images import ImageBank
from finetune.recipe import Recipe
from finetune.template import Encoded
from modelfiles.folder import ModelFolder

GIB = 2**30
LINEAR = re.compile(r"^(?!.*visual).*layers\.\d+\..*_proj\.weight$")
# What PyTorch's allocator holds beyond the tensors that live at the peak: cuBLAS's workspace and split blocks.
WORKSPACE, FRAGMENTATION = 96 * 2**20, 0.06


@dataclass(frozen=True)
class Load:
    """The heaviest micro-batch: rows, their tokens (padded), label tokens, image tokens, and patches in the tower."""

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


def heaviest_load(rows: Sequence[Encoded], recipe: Recipe, bank: ImageBank, most: int | None = None) -> Load:
    """The micro-batch with the most tokens that the recipe can make of the rows; `most`: pixels an image may have."""
    limits = bank.limits if most is None else replace(bank.limits, most=most)
    grids = bank.grids if most is None else [limits.grid(*size) for size in bank.sizes]
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
        patches=sum(grids[image][1] * grids[image][2] for image in set(images)),
    )


def changes_that_fit(
    folder: ModelFolder, recipe: Recipe, rows: Sequence[Encoded], bank: ImageBank, card: Card
) -> dict[str, Any] | None:
    """The keys to change so that training fits the card, what harms least first; {} if it fits, None if none help."""
    changes: dict[str, Any] = {}

    def fits() -> bool:
        changed = recipe.model_copy(update=changes)
        load = heaviest_load(rows, changed, bank, changes.get("image_max_pixels"))
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
    pixels = max((rows * columns for _, rows, columns in bank.grids), default=0) * bank.limits.patch**2
    while pixels // 2 >= max(bank.limits.least, 64 * 64):
        pixels //= 2
        yield {"image_max_pixels": pixels}


def estimate(folder: ModelFolder, recipe: Recipe, load: Load, card: Card) -> Estimate:
    """Peak memory of training on the card with the heaviest micro-batch `load`."""
    text, vision = folder.text_config, folder.vision_config
    hidden, inner, layers = text["hidden_size"], text["intermediate_size"], text["num_hidden_layers"]
    head = text.get("head_dim") or hidden // text["num_attention_heads"]
    query, key = head * text["num_attention_heads"], head * text["num_key_value_heads"]
    four_bit = recipe.quantization_bit == 4

    linears = {name: info.shape for name, info in folder.tensors.items() if LINEAR.match(name)}
    others = sum(prod(info.shape) for name, info in folder.tensors.items() if name not in linears)
    linear_weights = sum(prod(shape) for shape in linears.values())
    wanted = recipe.lora_target.split(",")
    adapted = [s for name, s in linears.items() if recipe.lora_target == "all" or name.split(".")[-2] in wanted]
    trained = recipe.lora_rank * sum(sum(shape) for shape in adapted)
    standing = {
        "weights in 4 bits": round(linear_weights * nf4_bytes(recipe.double_quantization)) if four_bit else 0,
        "weights in 16 bits": 2 * (others + (0 if four_bit else linear_weights)),
        "trained parameters": 4 * trained,
        "gradients": 4 * trained,
        "optimiser": 8 * trained,
    }

    # Bytes a token that autograd keeps of one decoder layer: 16-bit tensors are 2, float32 ones 4, a dropout mask 1.
    norms = 4 * 2 * hidden + (4 * (query + key) if folder.model_type == "qwen3_vl" else 0)
    flash = card.capability >= (8, 0)
    attention = 2 * query + 2 * 2 * (key if flash else query) + 2 * query  # queries, keys and values, output
    gated = 3 * 2 * inner  # gate, its SiLU, up
    if recipe.lora_dropout:
        adapters = 3 * (3 * hidden + query + 2 * hidden + inner)  # a copy and a mask for each adapter
    elif four_bit:
        adapters = 2 * (hidden + hidden + inner)  # the input itself, shared by the adapters that read it
    else:
        adapters = 2 * (3 * hidden + query + 2 * hidden + inner)  # a copy for each: PEFT goes by float32
    kept = norms + attention + gated + adapters
    # What the moment at the peak needs besides: gradients, and PEFT's float32 inputs where nothing is in 4 bits.
    if recipe.disable_gradient_checkpointing:
        behind = kept * layers
        working = 8 * hidden if four_bit else 8 * inner + (8 * hidden if recipe.lora_dropout else 0)
    else:
        behind = 2 * hidden * layers
        working = kept
        if four_bit:
            working += inner + 4 * hidden if recipe.lora_dropout else 2 * inner + 5 * hidden // 2
        else:
            working += 10 * inner + 12 * hidden if recipe.lora_dropout else 6 * inner + 10 * hidden
    deep = 1 + len(vision.get("deepstack_visual_indexes") or [])
    features = 2 * deep * load.image_tokens * hidden
    moments = {
        "vision tower": load.patches * vision_bytes(vision),
        "loss": load.tokens * (behind + 6 * hidden) + 12 * load.labels * text["vocab_size"] + features,
        "backward": load.tokens * (behind + working) + features + (2 * hidden * inner if four_bit else 0),
    }
    allocated = sum(standing.values()) + max(moments.values())
    return Estimate(standing, moments, round(allocated * (1 + FRAGMENTATION)) + WORKSPACE)


def nf4_bytes(double: bool) -> float:
    """Bytes of a weight in NF4: half, and a scale for each 64; doubly quantised the scale is a byte (QLoRA, 3)."""
    return 0.5 + (1 + 4 / 256) / 64 if double else 0.5 + 4 / 64


def vision_bytes(vision: dict[str, object]) -> int:
    """Bytes a patch that the frozen tower needs at once.

    At the peak, in a block's rotary embedding, queries and keys are in float32 several times; the pixels wait beside.
    """
    width, patch = vision.get("embed_dim") or vision["hidden_size"], vision["patch_size"]
    assert isinstance(width, int)
    assert isinstance(patch, int)
    pixels = 3 * 2 * patch**2  # channels and the two frames that an image counts for
    return 41 * width + 6 * pixels
