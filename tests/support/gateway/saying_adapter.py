"""An adapter that makes the demo's model say one token again and again, whatever it is asked."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from modelfiles.adapter.reader import PREFIX
from modelfiles.folder.files import read_json
from tests.support.paths import SHAPES_VL

RANK = 8
STRENGTH = 20.0


def saying_adapter(path: Path, token: str, strength: float = STRENGTH, base: Path = SHAPES_VL) -> Path:
    """Writes the adapter, as PEFT saves one, to the new folder `path`. `token`: as tokenizer.json spells it;
    strength: below 1 it changes the base's answers without replacing them.

    SwiGLU's units j and j + 4 of the last layer get z = a x and -z as their gate and their other factor, so that
    together they give silu(z) z + silu(-z) (-z) = z^2, which is positive for every x; the output of that goes to a
    direction of the residual stream in which the wanted token's logit is the largest.
    """
    weights = load_file(base / "model.safetensors")
    embeddings = weights["model.language_model.embed_tokens.weight"].float()
    norm = weights["model.language_model.norm.weight"].float()
    wanted = read_json(base, "tokenizer.json")["model"]["vocab"][token]
    hidden = embeddings.shape[1]
    layer = max(int(name.split(".")[3]) for name in weights if name.startswith("model.language_model.layers."))
    mlp = f"model.language_model.layers.{layer}.mlp."
    inner = weights[f"{mlp}down_proj.weight"].shape[1]
    direction = torch.zeros(hidden, requires_grad=True)
    optimizer = torch.optim.Adam([direction], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        logits = embeddings @ (norm * direction * hidden**0.5 / (direction.norm() + 1e-6))
        torch.nn.functional.cross_entropy(logits[None], torch.tensor([wanted])).backward()
        optimizer.step()
    assert int(logits.argmax()) == wanted
    factors = torch.randn(RANK // 2, hidden, generator=torch.Generator().manual_seed(0)) * strength / hidden**0.5
    units = torch.eye(RANK, inner)  # the first RANK units, one for each row
    target = (direction.detach() / direction.detach().norm() * strength)[:, None].repeat(1, RANK)
    tensors = {
        "gate_proj": (torch.cat([factors, -factors]), units.T),
        "up_proj": (torch.cat([factors, -factors]), units.T),
        "down_proj": (units, target),
    }
    path.mkdir(parents=True)
    save_file(
        {
            f"{PREFIX}{mlp}{linear}.{kind}.weight": matrix.contiguous()
            for linear, pair in tensors.items()
            for kind, matrix in zip(("lora_A", "lora_B"), pair, strict=True)
        },
        path / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": RANK,
        "target_modules": [f"{mlp}{one}" for one in sorted(tensors)],
        "bias": "none",
    }
    config |= {"task_type": "CAUSAL_LM", "base_model_name_or_path": str(base), "inference_mode": True}
    (path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return path
