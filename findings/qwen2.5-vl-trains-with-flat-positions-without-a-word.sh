#!/usr/bin/env bash
# Expected: a batch that was complete for transformers 4 (input_ids, attention_mask, pixel_values, image_grid_thw)
# is either enough for transformers 5 or raises an error. Qwen3-VL raises, naming the missing field.
#
# What happens with Qwen2.5-VL: version 5 needs a new field, mm_token_type_ids, to know where the pictures lie.
# Without it the model does not raise. It numbers the tokens 0, 1, 2, ... in all three axes of its rotary embedding,
# as if the patches were words in a line, and trains. Version 4.57 computed the two-dimensional positions from the
# same batch.
#
# Versions: transformers 5.24.0, torch 2.13.0, random tiny models.
#
# Why it matters: collators written for version 4, and those that pass a fixed list of keys, drop the field that the
# processor of version 5 returns. The model is then trained without knowing where in a picture a token lies, which
# grounding and reading order depend on, and is served with two-dimensional positions, which it was not trained
# with. generate() falls back in the same way, for Qwen3-VL too.
#
# Source: transformers 5.24.0, models/qwen2_5_vl/modeling_qwen2_5_vl.py (compute_3d_position_ids) beside
# models/qwen3_vl/modeling_qwen3_vl.py, which has the check.
#
# Output seen (a picture of 8x12 patches, so 4x6 tokens, before three words):
#   Qwen2.5-VL without the field: no error; equal to flat positions: True
#   Qwen2.5-VL with the field:    equal to flat positions: False; the last word is at 11, flat at 29
#   Qwen3-VL without the field:   ValueError
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq torch==2.13.0 transformers==5.24.0 pillow==13.0.0
cd "$work"
TRANSFORMERS_VERBOSITY=error "$work/venv/bin/python" -W ignore - <<'PY'
import sys

import torch
import transformers as t

small = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}}
text = {**small, **rope, "num_key_value_heads": 2, "vocab_size": 200}
vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 64}
tags = {"image_token_id": 100, "video_token_id": 101, "vision_start_token_id": 102, "vision_end_token_id": 103}
torch.manual_seed(0)
config = t.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **tags)
qwen2_5 = t.Qwen2_5_VLForConditionalGeneration(config).eval()
tower = {**vision, "deepstack_visual_indexes": [0]}
config = t.Qwen3VLConfig(text_config={**text, "head_dim": 16}, vision_config=tower, **tags)
qwen3 = t.Qwen3VLForConditionalGeneration(config).eval()
ids = torch.tensor([[5, 102, *[100] * 24, 103, 7, 8, 9]])
kinds = (ids == 100).int()
flat = torch.arange(ids.shape[1]).expand(3, 1, -1)


def batch(patch):
    pixels = torch.linspace(-1, 1, 96 * 3 * 2 * patch**2).reshape(96, -1)
    grid = torch.tensor([[1, 8, 12]])
    return {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels, "image_grid_thw": grid
    }  # fmt: skip


used = []
qwen2_5.model.language_model.register_forward_pre_hook(
    lambda module, args, kwargs: used.append(kwargs["position_ids"]), with_kwargs=True
)


@torch.no_grad()
def logits(**more):
    qwen2_5.model.rope_deltas = None
    return qwen2_5(**batch(14), **more).logits


straight, without, full = logits(position_ids=flat), logits(), logits(mm_token_type_ids=kinds)
silent, right = torch.equal(without, straight), not torch.allclose(full, straight, atol=1e-4)
last = used[-1][0, 0, -1].item()
try:
    with torch.no_grad():
        qwen3(**batch(16))
    error = "no error"
except ValueError as caught:
    error = "ValueError" if "mm_token_type_ids" in str(caught) else str(caught)
if not (silent and right) or error != "ValueError":
    sys.exit(f"The behaviour has changed: flat without the field {silent}, other with it {right}, Qwen3-VL {error}.")
print(f"Qwen2.5-VL without the field: no error; equal to flat positions: {silent}")
print(f"Qwen2.5-VL with the field:    equal to flat positions: {not right}; the last word is at {last}, flat at 29")
print(f"Qwen3-VL without the field:   {error}")
PY
