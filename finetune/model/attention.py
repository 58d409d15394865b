"""PyTorch's attention where transformers' own use of it does not suffice: GPUs without a flash kernel, packed rows.

Below compute capability 8.0 (a T4), PyTorch's memory-efficient kernel refuses grouped queries, which transformers asks
for whenever there is no mask, so attention would fall back to the kernel that holds every score: L x L for each head
(measured on a T4 in https://github.com/huggingface/transformers/pull/45776). With keys and values repeated for each
query head it is taken.

Packed rows lie after each other in one sequence, so that nothing but attention sees padding. Attention lays them out as
padded rows again, for which no mask is needed: one of all scores would be the square of the whole sequence, and the
kernels that take rows of any length need newer GPUs than a T4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

REPEATED_HEADS, PACKED = "sdpa_repeated_heads", "sdpa_packed"


@dataclass(frozen=True)
class Packed:
    """Where the T tokens of packed rows would be in B rows padded on the right to L tokens.

    places: [T] int64, row x L + place in the row; rows: B; length: L.
    """

    places: Any
    rows: int
    length: int


def register(flash: bool = False, packing: bool = False) -> str:
    """The name for `attn_implementation` of an attention that is made known to transformers.

    flash: whether the GPU has PyTorch's flash kernel; packing: whether rows may be packed.
    """
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    plain = sdpa_attention_forward if flash else _attend
    name = PACKED if packing else REPEATED_HEADS
    AttentionInterface.register(name, partial(_attend_packed, plain) if packing else plain)
    AttentionMaskInterface.register(name, sdpa_mask)
    return name


def packs(model: Any) -> bool:
    """Whether the attention of a *ForConditionalGeneration keeps packed rows apart."""
    return bool(model.config._attn_implementation == PACKED)


def _attend_packed(
    plain: Callable[..., tuple[Any, None]], module: Any, query: Any, key: Any, value: Any, attention_mask: Any | None,
    packed: Packed | None = None, **settings: Any,
) -> tuple[Any, None]:  # fmt: skip
    """`plain` attention within each row. query: [1, H, T, D]; key, value: [1, H / groups, T, D]; the rest as there."""
    if packed is None:
        return plain(module, query, key, value, attention_mask, **settings)
    rows = (_Padded.apply(states, packed) for states in (query, key, value))
    out, _ = plain(module, *rows, None, **settings)
    return _Unpadded.apply(out, packed), None


class _Padded(torch.autograd.Function):  # type: ignore[misc]
    """[1, H, T, D] packed to [B, H, L, D] padded with zeros."""

    @staticmethod
    def forward(context: Any, states: Any, packed: Packed) -> Any:
        context.packed = packed
        return _pad(states.transpose(1, 2)[0], packed).transpose(1, 2)

    @staticmethod
    def backward(context: Any, gradient: Any) -> tuple[Any, None]:
        return _unpad(gradient.transpose(1, 2), context.packed).transpose(0, 1)[None], None


class _Unpadded(torch.autograd.Function):  # type: ignore[misc]
    """[B, L, H, D] padded to [1, T, H, D] packed."""

    @staticmethod
    def forward(context: Any, states: Any, packed: Packed) -> Any:
        context.packed = packed
        return _unpad(states, packed)[None]

    @staticmethod
    def backward(context: Any, gradient: Any) -> tuple[Any, None]:
        return _pad(gradient[0], context.packed), None


def _pad(states: Any, packed: Packed) -> Any:
    """[T, H, D] to [B, L, H, D]."""
    padded = states.new_zeros(packed.rows * packed.length, *states.shape[1:])
    return padded.index_copy_(0, packed.places, states).view(packed.rows, packed.length, *states.shape[1:])


def _unpad(states: Any, packed: Packed) -> Any:
    """[B, L, H, D] to [T, H, D]."""
    return states.reshape(-1, *states.shape[2:]).index_select(0, packed.places)


def _attend(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any | None, dropout: float = 0.0,
    scaling: float | None = None, is_causal: bool | None = None, **_: Any,
) -> tuple[Any, None]:  # fmt: skip
    """query: [B, H, L, D]; key, value: [B, H / groups, S, D]; returns [B, L, H, D]."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    causal = module.is_causal if is_causal is None else is_causal
    out = torch.nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=attention_mask,
        dropout_p=dropout,
        scale=scaling,
        is_causal=bool(causal and attention_mask is None and query.shape[2] > 1),
    )
    return out.transpose(1, 2).contiguous(), None
