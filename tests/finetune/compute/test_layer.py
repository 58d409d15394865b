"""A decoder layer (RMSNorm, rotary embedding, attention, SwiGLU) against transformers' own and autograd, in float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.compute.decoder import activations, layer_backward, layer_forward, output
from finetune.model.base import load_base
from finetune.model.folder import open_base
from finetune.model.targets import make_trainable
from finetune.recipe.schema import Recipe
from tests.support.finetune.families import FAMILIES, family_folder

MakeRecipe = Callable[..., Recipe]
ROWS, LENGTH = 2, 11


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("keys", [{}, {"quantization_bit": 4}, {"lora_target": "v_proj,gate_proj"}], ids=str)
def test_output_and_gradients_are_transformers(
    family: str, keys: dict[str, Any], recipe: MakeRecipe, tmp_path: Path
) -> None:
    made = recipe(model_name_or_path=str(family_folder(family, tmp_path / family)), lora_dropout=0.0, **keys)
    base = load_base(open_base(made), made, torch.device("cpu"), torch.float32)
    model = make_trainable(base, made)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    decoder = base.model.language_model
    layer = decoder.layers[1]
    x = torch.randn(ROWS, LENGTH, decoder.config.hidden_size, requires_grad=True)
    grad = torch.randn_like(x)
    positions = torch.stack([torch.arange(LENGTH), torch.arange(LENGTH) // 2, torch.arange(LENGTH) % 3])
    positions = positions[:, None].expand(3, ROWS, LENGTH)
    trained = [p for p in layer.parameters() if p.requires_grad]

    cos, sin = decoder.rotary_emb(x, positions)
    expected = layer(x, position_embeddings=(cos, sin), attention_mask=None)
    expected = expected[0] if isinstance(expected, tuple) else expected
    theirs = torch.autograd.grad(expected, [x, *trained], grad)

    rotary = rotary_of(decoder, x, positions)
    kept = activations(layer, x, rotary)
    for found in (layer_forward(layer, x, rotary), output(layer, kept)):
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
    ours = [layer_backward(layer, kept, grad), *(p.grad for p in trained)]
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, other, rtol=1e-3, atol=1e-5 * float(other.abs().max()))


def rotary_of(decoder: Any, x: Any, positions: Any) -> tuple[Any, Any]:
    """cos and sin [B, L, 1, D] of the M-RoPE positions, sections of Qwen2-VL's and Qwen2.5-VL's from their rows."""
    cos, sin = decoder.rotary_emb(x, positions)
    if cos.ndim == 4:
        sections = 2 * list(decoder.config.rope_parameters["mrope_section"])
        rows = [row for _ in range(2) for row in range(3)]
        chosen = []
        for whole in (cos, sin):
            parts = whole.split(sections, dim=-1)
            chosen.append(torch.cat([part[row] for part, row in zip(parts, rows, strict=True)], dim=-1))
        cos, sin = chosen
    return cos[:, :, None], sin[:, :, None]
