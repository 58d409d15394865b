"""Writes safetensors files from tensors of other files, byte for byte, without loading them.

Format: 8 bytes little-endian header length, a JSON object, then the data
(https://github.com/huggingface/safetensors#format). The header is padded to 8 bytes, as the reference implementation
does.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path

from modelfiles.folder.safetensors_header import DTYPE_BITS, TensorInfo

CHUNK_BYTES = 1 << 24


@dataclass(frozen=True)
class TensorSource:
    """A tensor to write: the bytes of a tensor of another file, or zeros if `source` is None."""

    dtype: str
    shape: tuple[int, ...]
    source: TensorInfo | None

    @property
    def size(self) -> int:
        """Bytes of data."""
        return math.prod(self.shape) * DTYPE_BITS[self.dtype] // 8


def write_safetensors(path: Path, tensors: dict[str, TensorSource]) -> dict[str, int]:
    """Writes one file, its tensors in the given order; returns the byte offset in the file at which each one begins.

    Raises OSError.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        offsets = [end, end + tensor.size]
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": offsets}
        end = offsets[1]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    begins: dict[str, int] = {}
    with path.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for name, tensor in tensors.items():
            begins[name] = out.tell()
            if tensor.source is None:
                out.write(bytes(tensor.size))
                continue
            with tensor.source.shard.open("rb") as file:
                file.seek(tensor.source.offsets[0])
                remaining = tensor.size
                while remaining:
                    chunk = file.read(min(remaining, CHUNK_BYTES))
                    if not chunk:
                        raise OSError(f"{tensor.source.shard} has become shorter while it was read")
                    out.write(chunk)
                    remaining -= len(chunk)
    return begins
