"""Sequences cut into tiles of query rows, so that attention over any number of them is one launch of a fixed size.

LMDeploy launches as many blocks for every sequence as the longest may need, which a CUDA graph would have to fix for
the worst case. Here every tile is a sequence to the kernel: its query rows are the tile's, its keys the sequence's. The
rows that a block computes, and in which order, stay what they were, and so does every bit of the result.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

TILE = 128  # query rows of a block of LMDeploy's kernel where a head is 64 or 128 wide; half of it on older GPUs
ROWS_OF_SLOT = 32  # of a budget of rows for each tile that it has room for


class Tiles(NamedTuple):
    """What the kernel is given, each [tiles] int32; tiles that are not needed have no rows."""

    sequence: torch.Tensor
    start: torch.Tensor
    rows: torch.Tensor
    sequence_start: torch.Tensor
    keys: torch.Tensor  # of the whole sequence
    keys_so_far: torch.Tensor  # up to the tile's end, for causal attention


def cut(lengths: torch.Tensor, count: int) -> Tiles:
    """`count` tiles of the sequences of `lengths` rows, [sequences] int32, that follow each other; 0 for none."""
    needed = (lengths + TILE - 1) // TILE
    ends = needed.cumsum(0)
    number = torch.arange(count, device=lengths.device)
    sequence = torch.searchsorted(ends, number, right=True).clamp(max=len(lengths) - 1)
    offset = (number - (ends - needed)[sequence]) * TILE
    keys = lengths[sequence]
    rows = (keys - offset).clamp(0, TILE)
    sequence_start = (lengths.cumsum(0) - lengths)[sequence]
    found = sequence, sequence_start + offset, rows, sequence_start, keys, offset + rows
    return Tiles(*(value.int() for value in found))


def fits(budget: int, rows: int, sequences: int) -> bool:
    """Whether `rows` of so many sequences, and their tiles, are within a budget, whatever each one's length."""
    return rows <= budget and rows // TILE + sequences <= budget // ROWS_OF_SLOT
