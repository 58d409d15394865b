"""A linear with its adapter against PEFT's module under autograd, in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from finetune.compute import adapted_linear

ROWS, WIDE, NARROW = 7, 128, 64


class Model(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, bias: bool, four_bit: bool) -> None:
        super().__init__()
        self.plain = torch.nn.Linear(WIDE, NARROW, bias=bias)
        self.adapted = torch.nn.Linear(WIDE, NARROW, bias=bias)
        if four_bit:
            from bitsandbytes.nn import Linear4bit

            weight = self.adapted.weight.data
            self.adapted = Linear4bit(WIDE, NARROW, bias=bias, compute_dtype=torch.float32, quant_type="nf4")
            self.adapted.load_state_dict({"weight": weight} | ({"bias": torch.randn(NARROW)} if bias else {}))
            self.adapted = self.adapted.to("cpu")

    def forward(self, x: Any) -> Any:
        return self.plain(x) + self.adapted(x)


def modules(bias: bool = False, four_bit: bool = False, **keys: Any) -> Any:
    """A model of two linears, one of them with an adapter that does something."""
    torch.manual_seed(0)
    made = Model(bias, four_bit).requires_grad_(False)
    get_peft_model(made, LoraConfig(r=4, target_modules=["adapted"], **{"lora_alpha": 12, "lora_dropout": 0.0} | keys))
    torch.nn.init.normal_(made.adapted.lora_B["default"].weight)
    return made.train()


def close(ours: Any, theirs: Any) -> bool:
    return bool(torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.detach().abs().max())))


@pytest.mark.parametrize("name", ["plain", "adapted"])
@pytest.mark.parametrize("keys", [{}, {"bias": True}, {"four_bit": True}, {"use_rslora": True}], ids=str)
def test_output_and_gradients_are_pefts(name: str, keys: dict[str, Any]) -> None:
    module = getattr(modules(**keys), name)
    x, grad = torch.randn(ROWS, WIDE, requires_grad=True), torch.randn(ROWS, NARROW)
    trained = [p for p in module.parameters() if p.requires_grad]
    expected = module(x)
    theirs = torch.autograd.grad(expected, [x, *trained], grad)
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    ours = adapted_linear.linear(module, x)
    ours.backward(grad)
    assert close(ours, expected)
    assert close(x.grad, theirs[0])
    for parameter, gradient in zip(trained, theirs[1:], strict=True):
        assert close(parameter.grad - 1, gradient), "gradients are added to what is there"


def test_dropout_falls_on_the_adapter_alone_and_its_gradient_knows_what_fell() -> None:
    module = modules(lora_dropout=0.4).adapted
    x, grad = torch.randn(ROWS, WIDE, requires_grad=True), torch.randn(ROWS, NARROW)
    with torch.no_grad():
        out, kept = adapted_linear.forward(module, x)
    down, up = module.lora_A["default"].weight, module.lora_B["default"].weight
    expected = module.base_layer(x) + 3 * (x * kept.mask / 0.6) @ down.T @ up.T
    theirs = torch.autograd.grad(expected, [x, down, up], grad)
    assert 0 < kept.mask.float().mean() < 1
    assert close(out, expected)
    with torch.no_grad():
        assert close(adapted_linear.backward(module, kept, grad), theirs[0])
    assert close(down.grad, theirs[1])
    assert close(up.grad, theirs[2])
