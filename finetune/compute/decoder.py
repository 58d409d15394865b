"""The language model's layers forward and backward, a layer at a time, keeping only each layer's input."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import rms_norm, silu

from finetune.compute import adapted_linear
from finetune.compute.adapted_linear import adapter_of, base_of, dropped, linear


class _Gated(torch.autograd.Function):  # type: ignore[misc]
    """silu(gate) * up; keeps only its inputs."""

    @staticmethod
    def forward(ctx: Any, gate: Any, up: Any) -> Any:
        ctx.save_for_backward(gate, up)
        return silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        gate, up = ctx.saved_tensors
        grad_gate = torch.ops.aten.silu_backward(grad * up, gate)
        return grad_gate, silu(gate).mul_(grad)


class _Rotated(torch.autograd.Function):  # type: ignore[misc]
    """Rotary position embedding of x [B, L, H, D] by cos and sin [B, L, 1, D]; its gradient turns back."""

    @staticmethod
    def forward(ctx: Any, x: Any, cos: Any, sin: Any) -> Any:
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin, 1)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return _rotate(grad, *ctx.saved_tensors, -1), None, None


def _rotate(x: Any, cos: Any, sin: Any, sign: int) -> Any:
    half = x.shape[-1] // 2
    cos, sin = cos[..., :half], sin[..., :half]
    out = torch.empty_like(x)
    a, b = x[..., :half], x[..., half:]
    torch.mul(a, cos, out=out[..., :half]).addcmul_(b, sin, value=-sign)
    torch.mul(b, cos, out=out[..., half:]).addcmul_(a, sin, value=sign)
    return out


def before_down(layer: Any, x: Any, rotary: tuple[Any, Any]) -> tuple[Any, Any]:
    """The layer on x [B, L, hidden] up to its last linear: what its output is added to, and its input [B L, inner]."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    attention = layer.self_attn
    rows, length, hidden = x.shape
    shape = (rows, length, -1, attention.head_dim)
    states = _norm(layer.input_layernorm, x).view(-1, hidden)
    query, key, value = (
        linear(getattr(attention, name), states).view(shape) for name in ("q_proj", "k_proj", "v_proj")
    )
    if hasattr(attention, "q_norm"):
        query, key = _norm(attention.q_norm, query), _norm(attention.k_norm, key)
    query, key = (_Rotated.apply(states, *rotary).transpose(1, 2) for states in (query, key))
    attend = ALL_ATTENTION_FUNCTIONS[attention.config._attn_implementation]
    states = attend(attention, query, key, value.transpose(1, 2), None, dropout=0.0, scaling=attention.scaling)[0]
    x = x + linear(attention.o_proj, states.flatten(0, 1).flatten(1)).view(x.shape)
    states = _norm(layer.post_attention_layernorm, x).view(-1, hidden)
    return x, _Gated.apply(linear(layer.mlp.gate_proj, states), linear(layer.mlp.up_proj, states))


def layer_forward(layer: Any, x: Any, rotary: tuple[Any, Any]) -> Any:
    """[B, L, hidden] -> [B, L, hidden], without autograd."""
    with torch.no_grad():
        x, inner = before_down(layer, x, rotary)
        down = layer.mlp.down_proj
        out, _ = adapted_linear.forward(inner, dropped(down, inner), adapter_of(down), base_of(down))
        return out.view(x.shape).add_(x)


def layer_backward(layer: Any, x: Any, rotary: tuple[Any, Any], grad: Any, wanted: bool) -> Any:
    """The gradient of the layer's input for that of its output; adds those of its adapters to their `.grad`.

    The layer is computed again but for its last product, which no gradient needs. wanted: whether the input's is.
    """
    x = x.detach().requires_grad_(wanted)
    down = layer.mlp.down_proj
    adapter = adapter_of(down)
    with torch.enable_grad():
        residual, inner = before_down(layer, x, rotary)
        seen = dropped(down, inner)
    apart = seen is not inner
    flat = grad.view(-1, grad.shape[-1])
    with torch.no_grad():
        product = None if adapter is None else seen @ adapter[0].to(seen.dtype).T
        grad_inner, grad_seen, *grads = adapted_linear.backward(
            flat, seen, product, adapter, base_of(down), apart, True
        )
        for parameter, its in zip(adapter[:2] if adapter else (), grads, strict=False):
            parameter.grad = its.to(parameter.dtype) if parameter.grad is None else parameter.grad.add_(its)
    roots, seeds = [residual, inner], [grad, grad_inner]
    if apart:
        roots, seeds = [*roots, seen], [*seeds, grad_seen]
    if not residual.requires_grad:
        roots, seeds = roots[1:], seeds[1:]
    if any(root.requires_grad for root in roots):
        torch.autograd.backward(roots, seeds)
    return x.grad


def _norm(module: Any, x: Any) -> Any:
    return rms_norm(x, (x.shape[-1],), module.weight.to(x.dtype), module.variance_epsilon)


def _rotary(model: Any, x: Any, positions: Any) -> tuple[Any, Any]:
    """cos and sin [B, L, 1, D] of M-RoPE positions [3, B, L]."""
    cos, sin = model.rotary_emb(x, positions)
    if cos.ndim == 4:  # [3, B, L, D]: Qwen2-VL's and Qwen2.5-VL's attention takes each section from its row
        sections = 2 * list(model.config.rope_parameters["mrope_section"])
        cos, sin = (
            torch.cat([part[n % 3] for n, part in enumerate(whole.split(sections, dim=-1))], dim=-1)
            for whole in (cos, sin)
        )
    return cos.unsqueeze(2), sin.unsqueeze(2)


def learn(base: Any, inputs: Any, factor: Any) -> Any:
    """Adds the gradients of a micro-batch's loss, times `factor`, to the adapters' `.grad`; returns the loss.

    The loss is the summed float32 cross entropy of its label tokens.
    """
    model = base.model.language_model
    with torch.no_grad():
        x = model.embed_tokens(inputs.ids)
        if inputs.features is not None:
            x = torch.where(inputs.is_image[..., None], inputs.features[0], x)
        rotary = _rotary(model, x, inputs.positions)
        kept = []
        for number, layer in enumerate(model.layers):
            kept.append(x)
            x = layer_forward(layer, x, rotary)
            if inputs.features is not None and number + 1 < len(inputs.features):
                x += inputs.features[number + 1]
    last = x.requires_grad_()
    with torch.enable_grad():
        states = _norm(model.norm, last.view(-1, last.shape[-1])[inputs.label_at])
        logits = torch.nn.functional.linear(states, base.lm_head.weight).float()
        loss = torch.nn.functional.cross_entropy(logits, inputs.labels, reduction="sum", ignore_index=-100)
    (grad,) = torch.autograd.grad(loss * factor, last)
    del x, last, states, logits
    for number in reversed(range(len(model.layers))):
        grad = layer_backward(model.layers[number], kept.pop(), rotary, grad, number > 0)
    return loss.detach()
