"""Attention of one new token a row over the keys and values kept for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

NAME = "one_token_a_row"


@contextmanager
def one_token_a_row(language_model: Any) -> Iterator[None]:
    """Meanwhile the language model attends from one token a row, under the mask [B, 1, 1, S] that it is given."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attend)
    config = language_model.config
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def _attend(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float | None = None, **_: Any
) -> tuple[Any, None]:
    """query: [B, H, 1, D]; key, value: [B, H / groups, S, D]; attention_mask: [B, 1, 1, S] bool; returns [B, 1, H, D].

    The query heads that share a key head take the place of query tokens: no key or value is repeated for them.
    """
    rows, heads, _, size = query.shape
    grouped = query.reshape(rows, key.shape[1], heads // key.shape[1], size)
    out = torch.nn.functional.scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=scaling)
    return out.reshape(rows, 1, heads, size), None
