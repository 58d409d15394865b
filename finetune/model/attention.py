"""PyTorch's attention for GPUs without a flash kernel (below compute capability 8.0, such as a T4).

There PyTorch's memory-efficient kernel refuses grouped queries, which transformers asks for whenever there is no mask,
so attention would fall back to the kernel that holds every score: L x L for each head (measured on a T4 in
https://github.com/huggingface/transformers/pull/45776). With keys and values repeated for each query head it is taken.
"""

from __future__ import annotations

from typing import Any

import torch

NAME = "sdpa_repeated_heads"


def register() -> str:
    """Makes the attention known to transformers; the name for `attn_implementation`."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME


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
