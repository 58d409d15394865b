"""Attention without grouped queries gives what PyTorch's own gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from finetune.families.forward import hidden_states
from finetune.model import attention
from finetune.model.base import load_base
from finetune.model.folder import open_base
from finetune.recipe.load import make_recipe
from tests.support.finetune.families import family_folder


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_vl"])
def test_repeated_heads_give_the_same_states(
    family: str, padded: bool, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe({"model_name_or_path": str(family_folder(family, tmp_path / "model"))})
    ids = torch.randint(0, 100, (2, 12), generator=torch.Generator().manual_seed(0))
    attended = torch.ones(2, 12, dtype=torch.bool)
    attended[0, :5] = not padded
    from finetune.families.batch import Batch

    batch = Batch(ids, torch.arange(12).expand(4, 2, 12).contiguous(), attended if padded else None, [])
    states, calls = [], []
    plain = torch.nn.functional.scaled_dot_product_attention

    def watch(*args: Any, **kwargs: Any) -> Any:
        calls.append((args[0].shape[1] == args[1].shape[1], kwargs.get("enable_gqa", False)))
        return plain(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watch)
    for pick in (lambda *_: "sdpa", lambda *_: attention.register()):
        monkeypatch.setattr("finetune.model.base.pick_attention", pick)
        calls.clear()
        base = load_base(open_base(recipe), recipe, torch.device("cpu"), torch.float32)
        with torch.no_grad():
            states.append(hidden_states(base, batch, None)[attended])
    assert calls
    assert set(calls) == {(True, False)}
    assert torch.allclose(states[0], states[1], atol=1e-5)
