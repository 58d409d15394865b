"""A linear with a LoRA adapter as one step of autograd: no copies of the output, and its gradients written out.

PEFT adds an adapter with five passes over the output (clone, product, scaling, conversion, sum); here the product is
added by the matrix multiplication itself.
"""

from __future__ import annotations

from typing import Any

import torch


def base_of(module: Any) -> Any:
    """The linear below a possible adapter."""
    return module.get_base_layer() if hasattr(module, "get_base_layer") else module


def adapter_of(module: Any) -> tuple[Any, Any, float] | None:
    """(A [r, in], B [out, r], scaling) of the adapter in use, None for a linear without one."""
    names = [name for name in getattr(module, "active_adapters", ()) if name in module.lora_A]
    if not names:
        return None
    (name,) = names
    return module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name]


def dense_weight(base: Any, dtype: torch.dtype) -> Any:
    """[out, in] of a frozen linear, out of 4 bits if it is in them."""
    state = getattr(base.weight, "quant_state", None)
    if state is None:
        return base.weight.to(dtype)
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(base.weight.data, state).to(dtype)


def linear(module: Any, x: Any) -> Any:
    """[N, out] of x [N, in] by a frozen linear and its adapter, whose dropout applies."""
    base, adapter = base_of(module), adapter_of(module)
    if adapter is None:
        return _Linear.apply(x, x, None, None, base, 0.0)
    return _Linear.apply(x, dropped(module, x), *adapter[:2], base, adapter[2])


def dropped(module: Any, x: Any) -> Any:
    """What the adapter sees of x; x itself without dropout or without an adapter."""
    for dropout in getattr(module, "lora_dropout", {}).values():
        if isinstance(dropout, torch.nn.Dropout) and dropout.training and dropout.p:
            return dropout(x)
    return x


def forward(x: Any, seen: Any, adapter: tuple[Any, Any, float] | None, base: Any) -> tuple[Any, Any]:
    """(output [N, out], the adapter's inner product [N, r] or None) of x and of what the adapter sees of it."""
    bias = None if base.bias is None else base.bias.to(x.dtype)
    out = torch.nn.functional.linear(x, dense_weight(base, x.dtype), bias)
    if adapter is None:
        return out, None
    down, up, scaling = adapter
    inner = seen @ down.to(x.dtype).T
    return out.addmm_(inner, up.to(x.dtype).T, alpha=scaling), inner


def backward(
    grad: Any, seen: Any, inner: Any, adapter: tuple[Any, Any, float] | None, base: Any, apart: bool, wanted: bool
) -> tuple[Any, Any, Any, Any]:
    """Gradients of (x, seen, A, B) for that of the output; apart: whether `seen` is not x itself; wanted: x's too."""
    grad_x: Any = grad @ dense_weight(base, grad.dtype) if wanted else None
    if adapter is None:
        return grad_x, None, None, None
    down, up, scaling = adapter
    grad_inner = (grad @ up.to(grad.dtype)).mul_(scaling)
    grad_up = (grad.T @ inner).mul_(scaling)
    grad_down = grad_inner.T @ seen
    grad_seen = None
    if wanted and apart:
        grad_seen = grad_inner @ down.to(grad.dtype)
    elif wanted:
        grad_x.addmm_(grad_inner, down.to(grad.dtype))
    return grad_x, grad_seen, grad_down, grad_up


class _Linear(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, x: Any, seen: Any, down: Any, up: Any, base: Any, scaling: float) -> Any:
        ctx.adapter = None if down is None else (down, up, scaling)
        ctx.base, ctx.apart = base, seen is not x
        out, inner = forward(x, seen, ctx.adapter, base)
        if inner is not None:
            ctx.save_for_backward(seen, inner)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        seen, inner = ctx.saved_tensors or (None, None)
        wanted = ctx.needs_input_grad[0]
        grad_x, grad_seen, grad_down, grad_up = backward(grad, seen, inner, ctx.adapter, ctx.base, ctx.apart, wanted)
        if grad_down is not None:
            grad_down, grad_up = grad_down.to(ctx.adapter[0].dtype), grad_up.to(ctx.adapter[1].dtype)
        return grad_x, grad_seen, grad_down, grad_up, None, None
