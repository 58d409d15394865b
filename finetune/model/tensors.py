"""Tensors in parts: rows of a file's, and those that FSDP has sharded over the processes."""

from __future__ import annotations

from typing import Any

import torch

from modelfiles.folder.safetensors_header import TensorInfo

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def read_tensor(info: TensorInfo, rows: slice | None = None) -> Any:
    """The tensor, or some of its rows, in its own dtype."""
    begin, size, shape = info.offsets[0], info.size, tuple(info.shape)
    if rows is not None and shape:
        stride = info.size // shape[0]
        begin, size, shape = begin + rows.start * stride, (rows.stop - rows.start) * stride, (-1, *shape[1:])
    with info.shard.open("rb") as file:
        file.seek(begin)
        data = bytearray(file.read(size))
    return torch.frombuffer(data, dtype=DTYPES[info.dtype]).reshape(shape)


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


def is_sharded(module: Any) -> bool:
    """Whether FSDP has shared out the module's weights."""
    return any(hasattr(parameter, "placements") for parameter in module.parameters())
