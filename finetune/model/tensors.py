"""Reads tensors from safetensors files, a part at a time."""

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
