"""Memory of steps that run layer by layer (`compute`), where all that is kept and freed is written out.

`tests/finetune/memory/test_layered.py` counts what the layers allocate; these bytes a token are the same.
"""

from __future__ import annotations

from finetune.compute.fixed_inputs import FEWEST_LABELS
from finetune.compute.host_stack import fits_host
from finetune.compute.vision import CHUNK_PATCHES
from finetune.memory.cards import Card
from finetune.memory.heaviest_load import MicroBatchLoad
from finetune.model.supported import QWEN_VL
from finetune.recipe.schema import Recipe
from modelfiles.folder.model_folder import ModelFolder

# What the allocator takes beyond what comes and goes within a step, as a share of it; in a model of the allocator 5 to
# 14 %.
GAPS = 0.1
# What loading leaves free between weights in 4 bits, as a share of them: where they were in 16 bits. Graphs have memory
# of their own and cannot use it. Fitted to the peak of Qwen3-VL-8B's shape on an H200.
HOLES = 0.53
LOGITS = 18  # bytes a logit: 16 bits, float32, its log-probabilities, and the gradients of the first two


def why_modules(recipe: Recipe, model_type: str, processes: int = 1) -> str:
    """Why the models' own modules compute a recipe's steps on a GPU; empty if they run layer by layer."""
    if processes > 1:
        return "several processes train together"
    if model_type not in QWEN_VL:
        return "the model is of another family"
    if recipe.stage != "sft":
        return f"stage: {recipe.stage}"
    if recipe.finetuning_type != "lora":
        return f"finetuning_type: {recipe.finetuning_type}"
    for key in ("neftune_noise_alpha", "packing", "use_dora", "additional_target"):
        if getattr(recipe, key):
            return f"{key} is set"
    if recipe.flash_attn == "disabled":
        return "flash_attn: disabled"
    if not (recipe.freeze_vision_tower and recipe.freeze_multi_modal_projector):
        return "the vision tower is trained"
    return "the language model is frozen" if recipe.freeze_language_model else ""


def widths(folder: ModelFolder) -> tuple[int, int, int, int]:
    """How wide a token is in the language model: (hidden, within the MLP, queries of all heads, keys of all heads)."""
    text = folder.text_config
    head = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
    queries, keys = head * text["num_attention_heads"], head * text["num_key_value_heads"]
    return text["hidden_size"], text["intermediate_size"], queries, keys


def standing_bytes(folder: ModelFolder, load: MicroBatchLoad, levels: int, tower: int) -> dict[str, int]:
    """What is reserved for the whole run beside the model states, by use.

    Buffers of inputs and features, and places for two layers' inputs; what the tower needs at once, as it runs
    outside of the memory of the steps' graphs. levels: features of an image token, DeepStack's and the tower's own;
    tower: bytes a patch that it needs at once.
    """
    hidden: int = folder.text_config["hidden_size"]
    largest = load.largest_image or load.patches
    return {
        "inputs and features": load.tokens * (2 * levels * hidden + 4 * hidden + 32),
        "vision tower": tower * min(load.patches, max(CHUNK_PATCHES, largest)),
    }


def layered_moments(
    folder: ModelFolder, recipe: Recipe, load: MicroBatchLoad, card: Card, kept_layers: int, host: float
) -> tuple[int, dict[str, int]]:
    """(bytes that layers keep for the backward pass, what each moment adds to what stands at its peak).

    host: bytes of the host's memory that are free.
    """
    text = folder.text_config
    hidden, inner, query, key = widths(folder)
    # 16-bit numbers of a token in a layer's activations: inputs of norms and linears, queries, keys, values, output.
    normed = query + key if folder.model_type == "qwen3_vl" else 0
    rotated = query + 2 * (key if card.capability >= (8, 0) else query)  # keys and values repeated for a T4
    numbers = 4 * hidden + normed + rotated + query + 2 * inner
    dropped = 3 * (5 * hidden + query + inner)  # bytes: a copy and a mask for each adapter
    activations = 2 * numbers + (dropped if recipe.lora_dropout else 2 * inner)
    kept = load.tokens * activations * kept_layers
    layers = text["num_hidden_layers"]
    if not fits_host(layers - kept_layers, load.tokens * hidden, 2, host):  # two inputs are on the GPU in any case
        kept += load.tokens * 2 * hidden * max(0, layers - kept_layers - 2)
    weight = 2 * hidden * inner  # of a linear, out of 4 bits
    backward = load.tokens * (2 * hidden + 2 * inner + (2 * inner if recipe.lora_dropout else 0))
    if not recipe.lora_dropout:
        backward += weight
    if not kept_layers:  # one layer's are there all the same while it is gone through
        backward += load.tokens * activations
    labels = max(FEWEST_LABELS, load.labels)
    return kept, {
        "loss": kept + 6 * load.tokens * hidden + LOGITS * labels * text["vocab_size"],
        "backward": kept + backward,
    }
