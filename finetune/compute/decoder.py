"""The language model's layers forward and backward, a layer at a time, keeping only each layer's input."""

from __future__ import annotations

import re
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import rms_norm, silu

from finetune.compute.adapted_linear import Kept, backward, forward, forward_kept, keep, linear
from finetune.compute.fixed_inputs import IGNORED, FixedInputs
from finetune.compute.host_stack import HostMemory, HostStack
from finetune.compute.randomness import LayerDraws
from finetune.model.attention import PACKED, REPEATED_HEADS


class _Rotated(torch.autograd.Function):  # type: ignore[misc]
    """Rotary position embedding of x [B, L, H, D] by cos and sin [B, L, 1, D]; its gradient turns back."""

    @staticmethod
    def forward(ctx: Any, x: Any, cos: Any, sin: Any) -> Any:
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin, 1)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        cos, sin = ctx.saved_tensors
        return _rotate(grad, cos, sin, -1), None, None


def _rotate(x: Any, cos: Any, sin: Any, sign: int) -> Any:
    half = x.shape[-1] // 2
    cos, sin = cos[..., :half], sin[..., :half]
    out = torch.empty_like(x)
    a, b = x[..., :half], x[..., half:]
    torch.mul(a, cos, out=out[..., :half]).addcmul_(b, sin, value=-sign)
    torch.mul(b, cos, out=out[..., half:]).addcmul_(a, sin, value=sign)
    return out


@dataclass
class Activations:
    """What a layer's backward pass needs.

    x: its input; middle: x after attention; states: the same normed; for both autograd knows how they came of x.
    gate, up: the MLP's; gate_kept, up_kept, down_kept: what its linears keep.
    """

    x: Any
    middle: Any
    states: Any
    gate: Any
    up: Any
    gate_kept: Kept
    up_kept: Kept
    down_kept: Kept


def layer_forward(layer: Any, x: Any, rotary: tuple[Any, Any]) -> Any:
    """[B, L, hidden] -> [B, L, hidden], without autograd."""
    mlp = layer.mlp
    with torch.no_grad():
        x, states = _attended(layer, x, rotary)
        gate, _ = forward(mlp.gate_proj, states)
        up, _ = forward(mlp.up_proj, states)
        out, _ = forward(mlp.down_proj, silu(gate).mul_(up))
        return out.view(x.shape).add_(x)


def activations(layer: Any, x: Any, rotary: tuple[Any, Any]) -> Activations:
    """The layer on x but for its last product, which no gradient needs."""
    x, mlp = x.detach().requires_grad_(), layer.mlp
    with torch.enable_grad():
        middle, states = _attended(layer, x, rotary)
    with torch.no_grad():
        gate, gate_kept = forward(mlp.gate_proj, states.detach())
        up, up_kept = forward(mlp.up_proj, states.detach())
        down_kept = keep(mlp.down_proj, silu(gate).mul_(up))
    return Activations(x, middle, states, gate, up, gate_kept, up_kept, down_kept)


def output(layer: Any, kept: Activations) -> Any:
    """The layer's output [B, L, hidden] from its activations."""
    with torch.no_grad():
        out = forward_kept(layer.mlp.down_proj, silu(kept.gate).mul_(kept.up), kept.down_kept)
        return out.view(kept.x.shape).add_(kept.middle)


def layer_backward(layer: Any, kept: Activations, grad: Any) -> Any:
    """The gradient of the layer's input for that of its output; adds those of its adapters to their `.grad`.

    Uses the activations up. The widest tensors of a training step are here, so that each is freed or written over as
    soon as it can be.
    """
    mlp, flat = layer.mlp, grad.view(-1, grad.shape[-1])
    gate, up, gate_kept, up_kept = kept.gate, kept.up, kept.gate_kept, kept.up_kept
    with torch.no_grad():
        grad_inner = backward(mlp.down_proj, kept.down_kept, flat)
        kept.down_kept = kept.gate_kept = kept.up_kept = Kept()
        kept.gate = kept.up = None
        grad_up = silu(gate).mul_(grad_inner)
        grad_gate = torch.ops.aten.silu_backward.grad_input(grad_inner.mul_(up), gate, grad_input=gate)
        del up, grad_inner
        grad_states = backward(mlp.up_proj, up_kept, grad_up)
        del grad_up
        grad_states += backward(mlp.gate_proj, gate_kept, grad_gate)
        del gate, grad_gate
    torch.autograd.backward([kept.middle, kept.states], [grad, grad_states])
    return kept.x.grad


def _attended(layer: Any, x: Any, rotary: tuple[Any, Any]) -> tuple[Any, Any]:
    """x [B, L, hidden] after attention, and its normed states [B L, hidden] for what follows."""
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
    query, key = (_Rotated.apply(part, *rotary).transpose(1, 2) for part in (query, key))
    attend = ALL_ATTENTION_FUNCTIONS[attention.config._attn_implementation]
    out, _ = attend(attention, query, key, value.transpose(1, 2), None, dropout=0.0, scaling=attention.scaling)
    x = x + linear(attention.o_proj, out.flatten(0, 1).flatten(1)).view(x.shape)
    return x, _norm(layer.post_attention_layernorm, x).view(-1, hidden)


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


def why_not(base: Any) -> str:
    """Why LayeredStep cannot train the model; empty if it can."""
    for name, parameter in base.named_parameters():
        if parameter.requires_grad and not re.search(r"\.language_model\.layers\.\d+\..*_proj\.lora_[AB]\.", name):
            return f"{name} is trained"
    for module in base.modules():
        if hasattr(module, "lora_A") and (len(module.lora_A) > 1 or getattr(module, "lora_variant", None)):
            return "an adapter is of a kind of its own"
    for layer in base.model.language_model.layers:
        attention = layer.self_attn
        if attention.config._attn_implementation not in ("sdpa", REPEATED_HEADS, PACKED):
            return f"attention is {attention.config._attn_implementation}"
        if getattr(attention, "sliding_window", None) is not None:
            return "attention has a sliding window"
    return ""


class LayeredStep:
    """The loss of micro-batches and its gradients, for a frozen language model whose linears have LoRA adapters.

    base: the *ForConditionalGeneration module; kept_layers: of how many layers, the last ones, activations are kept;
    the others' are computed again from their inputs, which wait in `host` (of as many tensors), or where they are.
    """

    def __init__(self, base: Any, kept_layers: int = 0, host: HostMemory | None = None) -> None:
        self.base, self.model, self.host = base, base.model.language_model, host
        config = base.config
        device = self.model.embed_tokens.weight.device
        self.image_ids = torch.tensor([config.image_token_id, config.video_token_id], device=device)
        self.again = len(self.model.layers) - kept_layers
        drops = any(isinstance(module, torch.nn.Dropout) and module.p for module in self.model.layers.modules())
        self.draws = LayerDraws(len(self.model.layers), device) if drops else None

    def reseed(self) -> None:
        """Draws new random numbers for dropout; to be called before every micro-batch."""
        if self.draws is not None:
            self.draws.reseed()

    @property
    def generators(self) -> list[Any]:
        """Those of a GPU from which `learn` draws."""
        return [] if self.draws is None else self.draws.generators

    def learn(self, inputs: FixedInputs, factor: Any) -> Any:
        """Adds the gradients of the loss times `factor` (a tensor) to the adapters' `.grad`; returns the loss.

        The loss is the summed float32 cross entropy of the label tokens.
        """
        stack: HostStack | nullcontext[list[Any]] = nullcontext([]) if self.host is None else HostStack(self.host)
        with stack as waiting:
            x, kept, rotary = self._forward(inputs, waiting)
            loss, grad = self._loss(x, inputs, factor)
            del x
            for number in reversed(range(len(self.model.layers))):
                with self._drawn(number, True):
                    layer = self.model.layers[number]
                    found = activations(layer, waiting.pop(), rotary) if number < self.again else kept.pop()
                    grad = layer_backward(layer, found, grad)
                    del found
        return loss

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def _forward(
        self, inputs: FixedInputs, waiting: HostStack | list[Any]
    ) -> tuple[Any, list[Activations], tuple[Any, Any]]:
        """(the last layer's output [B, L, hidden], activations of the layers that keep them, cos and sin).

        waiting: gets the other layers' inputs.
        """
        x = self.model.embed_tokens(inputs.ids)
        is_image = torch.isin(inputs.ids, self.image_ids)
        order = is_image.view(-1).cumsum(0).sub_(1).clamp_(min=0)  # of an image token among them
        x = torch.where(is_image[..., None], inputs.features[0].index_select(0, order).view(x.shape), x)
        rotary = _rotary(self.model, x, inputs.positions)
        kept: list[Activations] = []
        for number, layer in enumerate(self.model.layers):
            with self._drawn(number, False):
                if number < self.again:
                    waiting.append(x)
                    x = layer_forward(layer, x, rotary)
                else:
                    kept.append(activations(layer, x, rotary))
                    x = output(layer, kept[-1])
            if number + 1 < len(inputs.features):  # DeepStack
                more = inputs.features[number + 1].index_select(0, order).view(x.shape)
                x += torch.where(is_image[..., None], more, 0)
        return x, kept, rotary

    def _loss(self, x: Any, inputs: FixedInputs, factor: Any) -> tuple[Any, Any]:
        """(the loss, its gradient for x times factor)."""
        x.requires_grad_()
        with torch.enable_grad():
            states = _norm(self.model.norm, x.view(-1, x.shape[-1])[inputs.label_at])
            logits = self.base.lm_head(states).float()
            loss = torch.nn.functional.cross_entropy(logits, inputs.labels, reduction="sum", ignore_index=IGNORED)
            (grad,) = torch.autograd.grad(loss * factor, x)
        return loss.detach(), grad

    def _drawn(self, layer: int, again: bool) -> Any:
        return nullcontext() if self.draws is None else self.draws.drawn(layer, again)
