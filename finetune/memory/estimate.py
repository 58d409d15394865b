"""How much GPU memory training takes, from config.json, safetensors headers and the recipe alone.

Memory is the model states (weights, trained parameters, their gradients and the optimiser's states) and what the moment
of the peak adds: the vision tower, the loss, or the backward pass. Bytes a token were derived from what
autograd keeps in transformers' decoder layers with PEFT's adapters, and checked against measured peaks
(`python -m benchmarks.finetune_memory`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from finetune.families.preference import keeps_reference
from finetune.memory.cards import Card
from finetune.memory.heaviest_load import MicroBatchLoad
from finetune.memory.layered import GAPS, HOLES, layered_moments, standing_bytes, widths
from finetune.memory.model_states import model_state_bytes
from finetune.recipe.schema import Recipe
from modelfiles.folder.model_folder import ModelFolder

GIB = 2**30
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
class Estimate:
    """In bytes. model_states: what stays allocated, by use; moments: what each adds at its peak; reserved: in all."""

    model_states: dict[str, int]
    moments: dict[str, int]
    reserved: int


def estimate(
    folder: ModelFolder, recipe: Recipe, load: MicroBatchLoad, card: Card, kept_layers: int | None = None,
    layered: bool = False, host: float = math.inf,
) -> Estimate:  # fmt: skip
    """Peak memory of training on the card with the heaviest micro-batch `load`.

    kept_layers: decoder layers whose activations are kept, the others' are computed again. None: all of them with
    disable_gradient_checkpointing, else none. layered: whether steps run layer by layer (see `why_modules`);
    host: bytes of the host's memory that are free, where such steps put layers' inputs.
    """
    layers = folder.text_config["num_hidden_layers"]
    if kept_layers is None:
        kept_layers = layers if recipe.disable_gradient_checkpointing else 0
    if layered:
        return _layered(folder, recipe, load, card, kept_layers, host)
    text, vision = folder.text_config, folder.vision_config
    hidden, inner, query, key = widths(folder)
    four_bit, lora = recipe.quantization_bit == 4, recipe.finetuning_type == "lora"
    model_states = model_state_bytes(folder, recipe)
    if keeps_reference(recipe):
        model_states["reference"] = model_states["trained parameters"]

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
    behind = kept * kept_layers + 2 * hidden * (layers - kept_layers)
    # While the kept layers are gone through, and, when they are, one layer of those that are computed again.
    whole_layers = 8 * hidden
    again = kept + (inner + 4 * hidden if recipe.lora_dropout else 2 * inner + 5 * hidden // 2)
    if goes_by_float32:
        whole_layers = 8 * inner + (8 * hidden if recipe.lora_dropout else 0)
        again = kept + (10 * inner + 12 * hidden if recipe.lora_dropout else 6 * inner + 10 * hidden)
    working = max(whole_layers if kept_layers else 0, again - kept * kept_layers if kept_layers < layers else 0)
    features = 2 * _levels(vision) * load.image_tokens * hidden
    whole = 0 if lora else model_states["trained parameters"] // 2  # their 16-bit copies, while autocast is on
    tower = load.patches * tower_bytes(vision)
    if not (recipe.freeze_vision_tower and recipe.freeze_multi_modal_projector):
        features += load.patches * _kept_by_tower(vision, kept_layers == layers)
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
    return Estimate(model_states, moments, round(sum(model_states.values()) + highest + WORKSPACE))


def _layered(
    folder: ModelFolder, recipe: Recipe, load: MicroBatchLoad, card: Card, kept_layers: int, host: float
) -> Estimate:
    vision = folder.vision_config
    standing = standing_bytes(folder, load, _levels(vision), tower_bytes(vision))
    model_states = model_state_bytes(folder, recipe) | standing
    kept, moments = layered_moments(folder, recipe, load, card, kept_layers, host)
    peak = max(moments.values())
    # The one is in the other: what runs outside of the graphs goes where loading left room.
    unused = max(GAPS * (peak - kept) + WORKSPACE, HOLES * model_states.get("weights in 4 bits", 0))
    reserved = sum(model_states.values()) + peak + unused
    return Estimate(model_states, moments, round(reserved))


def _levels(vision: dict[str, Any]) -> int:
    """Features of an image token: the tower's own and DeepStack's."""
    return 1 + len(vision.get("deepstack_visual_indexes") or [])


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
