"""Reads the header of a safetensors file: names, dtypes, shapes and offsets of its tensors, never their values.

Format: 8 bytes little-endian header length, a JSON object, then the data
(https://github.com/huggingface/safetensors#format). Every number in it is checked before it is used.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TypeGuard

# The limit of the reference implementation; a 10 GB "header" must not be read into memory.
MAX_HEADER_BYTES = 100_000_000
LFS_POINTER = b"version https://git-lfs.github.com/spec/"

# Bits per element (safetensors' own names).
DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


class HeaderError(ValueError):
    """The file is not a safetensors file that can be trusted. `lfs_pointer` is true for an unfetched Git LFS file."""

    def __init__(self, message: str, lfs_pointer: bool = False) -> None:
        super().__init__(message)
        self.lfs_pointer = lfs_pointer


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a shard. `offsets` are absolute byte positions (begin, end) in the shard's file."""

    dtype: str
    shape: tuple[int, ...]
    shard: Path
    offsets: tuple[int, int]

    @property
    def size(self) -> int:
        """Bytes of data."""
        return self.offsets[1] - self.offsets[0]


def header_length(path: Path) -> int:
    """The checked length in bytes of the JSON header. Raises HeaderError."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(len(LFS_POINTER))
    if start == LFS_POINTER:
        raise HeaderError(f"{path.name} is a Git LFS pointer, not the weights; fetch them with `git lfs pull`", True)
    if size < 10:
        raise HeaderError(f"{path.name} is no safetensors file: it has {size} bytes")
    length: int = struct.unpack("<Q", start[:8])[0]
    if length > MAX_HEADER_BYTES:
        raise HeaderError(f"{path.name} claims a header of {length:,} bytes; the limit is {MAX_HEADER_BYTES:,}")
    if length < 2 or 8 + length > size:
        raise HeaderError(f"{path.name} claims a header of {length:,} bytes but the file has {size:,}")
    return length


def read_header(path: Path, shard: Path | None = None) -> dict[str, TensorInfo]:
    """The tensors of one file, in file order; `shard` is the path to record when it differs. Raises HeaderError."""
    length = header_length(path)
    with path.open("rb") as file:
        file.seek(8)
        raw = file.read(length)
    try:
        header = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise HeaderError(f"{path.name} has a header that is not JSON ({type(error).__name__})") from None
    if not isinstance(header, dict):
        raise HeaderError(f"{path.name} has a header that is not a JSON object")
    header.pop("__metadata__", None)
    data_start, data_size = 8 + length, path.stat().st_size - 8 - length
    tensors = {name: _tensor(path, name, entry, data_start, data_size, shard or path) for name, entry in header.items()}
    position = data_start
    for name, info in sorted(tensors.items(), key=lambda item: item[1].offsets):
        if info.offsets[0] != position:
            raise HeaderError(f"{path.name}: tensor {name!r} overlaps another or leaves a hole at byte {position:,}")
        position = info.offsets[1]
    if position != data_start + data_size:
        raise HeaderError(f"{path.name} has {data_start + data_size - position:,} bytes that belong to no tensor")
    return tensors


def _tensor(path: Path, name: str, entry: object, data_start: int, data_size: int, shard: Path) -> TensorInfo:
    where = f"{path.name}: tensor {name!r}"
    if not isinstance(entry, dict):
        raise HeaderError(f"{where} is not described by a JSON object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise HeaderError(f"{where} has the unknown dtype {str(dtype)[:20]!r}")
    if not _sizes(shape) or len(shape) > 16:
        raise HeaderError(f"{where} has the impossible shape {str(shape)[:80]}")
    if not _sizes(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= data_size:
        raise HeaderError(f"{where} has offsets {str(offsets)[:80]} outside the file's {data_size:,} bytes of data")
    begin, end = offsets
    if (end - begin) * 8 != prod(shape) * DTYPE_BITS[dtype]:
        raise HeaderError(f"{where} of shape {shape} and dtype {dtype} does not fit its offsets {offsets}")
    return TensorInfo(dtype, tuple(shape), shard, (data_start + begin, data_start + end))


def _sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)
