"""Weights that FSDP shards: gathered whole, and cut to the shape of a shard."""

from __future__ import annotations

from typing import Any

import torch


def gather_full(value: Any) -> Any:
    """A nested state on the CPU with FSDP's sharded tensors put together. All processes must call it."""
    if isinstance(value, dict):
        return {key: gather_full(item) for key, item in value.items()}
    if isinstance(value, list):
        return [gather_full(item) for item in value]
    if hasattr(value, "full_tensor"):
        value = value.full_tensor()
    return value.detach().cpu() if isinstance(value, torch.Tensor) else value


def shard_like(value: Any, parameter: Any) -> Any:
    """This process's share of a whole tensor, laid out as the parameter is."""
    if not hasattr(parameter, "placements") or value.shape != parameter.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value, parameter.device_mesh, parameter.placements)
