"""What a processor makes of each of a pixel's 256 values, by colour: made in one process, looked up in the other."""

from __future__ import annotations

import torch

COLOURS, VALUES = 3, 256


def to_bytes(table: torch.Tensor) -> bytes:
    """A table [3, 256] as float32 numbers."""
    data: bytes = table.float().numpy().tobytes()
    return data


def from_bytes(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.float32).view(COLOURS, VALUES)


def look_up(patches: torch.Tensor, table: torch.Tensor, frames: int) -> torch.Tensor:
    """[patches, 3 * pixels] uint8 by a table [3, 256] to [patches, 3 * frames * pixels], every frame the same."""
    places = patches.view(len(patches), COLOURS, -1).int()
    places += torch.arange(0, COLOURS * VALUES, VALUES, dtype=torch.int32, device=patches.device)[:, None]
    found = torch.nn.functional.embedding(places, table.view(-1, 1)).squeeze(-1)  # [patches, 3, pixels]
    return found[:, :, None].expand(-1, -1, frames, -1).reshape(len(patches), -1)
