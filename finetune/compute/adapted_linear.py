"""A frozen linear with a LoRA adapter, forward and backward: few passes over its output, little kept in between.

PEFT adds an adapter in five passes over the output (clone, product, scaling, conversion, sum); here the matrix
multiplication itself adds the product. Gradients of the adapter go straight to its parameters' `.grad`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class Kept:
    """What the backward pass needs: seen, [N, in] as the adapter saw it; mask, its dropout's; inner, [N, r]."""

    seen: Any = None
    mask: Any = None
    inner: Any = None


def linear(module: Any, x: Any) -> Any:
    """[N, out] of x [N, in], under autograd. The gradient of x must be wanted, for the adapter to get its own."""
    return _Linear.apply(x, module)


def forward(module: Any, x: Any) -> tuple[Any, Kept]:
    """([N, out] of x [N, in], what `backward` needs), without autograd."""
    kept = keep(module, x)
    return forward_kept(module, x, kept), kept


def forward_kept(module: Any, x: Any, kept: Kept) -> Any:
    """[N, out] of x [N, in], given what `keep` made of x."""
    base = _base(module)
    bias = None if base.bias is None else base.bias.to(x.dtype)
    out = torch.nn.functional.linear(x, dense_weight(base, x.dtype), bias)
    if kept.inner is not None:
        _, up, scaling = _adapter(module)
        out.addmm_(kept.inner, up.to(x.dtype).T, alpha=scaling)
    return out


def keep(module: Any, x: Any) -> Kept:
    """What `backward` needs of x [N, in], without the output."""
    adapter = _adapter(module)
    if adapter is None:
        return Kept()
    rate, mask = _dropout(module), None
    if rate:
        x, mask = torch.native_dropout(x, rate, True)
    return Kept(x, mask, x @ adapter[0].to(x.dtype).T)


def backward(module: Any, kept: Kept, grad: Any) -> Any:
    """The gradient of x [N, in] for that of the output [N, out]; adds those of the adapter to its `.grad`."""
    grad_x = grad @ dense_weight(_base(module), grad.dtype)
    if kept.inner is None:
        return grad_x
    down, up, scaling = _adapter(module)
    grad_inner = (grad @ up.to(grad.dtype)).mul_(scaling)
    _add(up, (grad.T @ kept.inner).mul_(scaling))
    _add(down, grad_inner.T @ kept.seen)
    if kept.mask is None:
        return grad_x.addmm_(grad_inner, down.to(grad.dtype))
    seen = grad_inner @ down.to(grad.dtype)
    return grad_x.add_(seen.mul_(kept.mask), alpha=1 / (1 - _dropout(module)))


def dense_weight(base: Any, dtype: torch.dtype) -> Any:
    """[out, in] of a frozen linear, out of 4 bits if it is in them."""
    state = getattr(base.weight, "quant_state", None)
    if state is None:
        return base.weight.to(dtype)
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(base.weight.data, state).to(dtype)


def _base(module: Any) -> Any:
    return module.get_base_layer() if hasattr(module, "get_base_layer") else module


def _adapter(module: Any) -> Any:
    """(A [r, in], B [out, r], scaling) of the adapter, None for a linear without one."""
    if not hasattr(module, "lora_A"):
        return None
    (name,) = module.lora_A
    return module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name]


def _dropout(module: Any) -> float:
    (dropout,) = module.lora_dropout.values()
    return float(dropout.p) if isinstance(dropout, torch.nn.Dropout) and dropout.training else 0.0


def _add(parameter: Any, gradient: Any) -> None:
    if parameter.grad is None:
        parameter.grad = gradient.to(parameter.dtype)
    else:
        parameter.grad += gradient


class _Linear(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, x: Any, module: Any) -> Any:
        out, kept = forward(module, x)
        ctx.module = module
        ctx.save_for_backward(kept.seen, kept.mask, kept.inner)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return backward(ctx.module, Kept(*ctx.saved_tensors), grad), None
