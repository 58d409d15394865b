"""Keys and values of the rows that are being answered, each row in a slot of fixed size and place.

Prompts are padded on the right, where causal attention needs no mask, and each row's answer goes on at its own length.
So a row that has ended makes room for the next one, and a CUDA graph of a step stays right.
"""

from __future__ import annotations

from typing import Any

import torch


class Slots:
    """Room for `count` rows of `size` tokens; the tensors are made when the first prompt comes.

    keys, values: of each layer, [count, key heads, size, head dimension].
    """

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size = count, size
        self.keys: list[Any] = []
        self.values: list[Any] = []

    def make(self, layer: int, keys: Any, values: Any) -> None:
        """Makes a layer's tensors, for keys and values like these [B, key heads, L, head dimension]."""
        if layer == len(self.keys):
            for kept, like in ((self.keys, keys), (self.values, values)):
                kept.append(like.new_zeros(self.count, like.shape[1], self.size, like.shape[3]))

    def move(self, source: Any, target: Any) -> None:
        """Copies rows to other slots. source, target: [n] slots."""
        for kept in (*self.keys, *self.values):
            kept[target] = kept[source]


class _Cache:
    """What transformers asks of a key-value cache; the masks are ours."""

    is_compileable = False

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query: Any, layer_idx: int = 0) -> tuple[int, int]:
        """query: the number of query tokens, or with transformers 4.57 their places."""
        return (query if isinstance(query, int) else len(query)), 0


class Filling(_Cache):
    """The cache of a forward pass over whole prompts that go into the slots `rows` [B]."""

    def __init__(self, slots: Slots, rows: Any) -> None:
        self.slots, self.rows = slots, rows

    def update(self, keys: Any, values: Any, layer_idx: int, *_: Any, **__: Any) -> tuple[Any, Any]:
        """Keeps [B, key heads, L, head dimension] and gives them back: a prompt attends to itself alone."""
        self.slots.make(layer_idx, keys, values)
        length = keys.shape[2]
        self.slots.keys[layer_idx][:, :, :length].index_copy_(0, self.rows, keys)
        self.slots.values[layer_idx][:, :, :length].index_copy_(0, self.rows, values)
        return keys, values


class Stepping(_Cache):
    """The cache of a step of the first W slots: one token each, at the places `lengths` [W], over `seen` places."""

    def __init__(self, slots: Slots, lengths: Any, seen: int) -> None:
        self.slots, self.lengths, self.seen = slots, lengths, seen
        self.rows = torch.arange(len(lengths), device=lengths.device)

    def update(self, keys: Any, values: Any, layer_idx: int, *_: Any, **__: Any) -> tuple[Any, Any]:
        """Adds [W, key heads, 1, head dimension]; gives the slots' first `seen` places."""
        found = []
        for kept, new in ((self.slots.keys, keys), (self.slots.values, values)):
            kept[layer_idx][self.rows, :, self.lengths] = new[:, :, 0]
            found.append(kept[layer_idx][: len(self.rows), :, : self.seen])
        return found[0], found[1]
