"""Reads the metadata of a GGUF file, never its tensors.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Counts and lengths are bounded before use.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO

from modelfiles import counted

MAX_KEYS = 10_000
MAX_STRING = 16_000_000
MAX_ARRAY = 4_000_000
_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9


class GgufError(ValueError):
    """The file is no GGUF that can be trusted."""


def read_gguf_metadata(path: Path, arrays: tuple[str, ...] = ()) -> dict[str, Any]:
    """The key-value pairs of the header; an array comes as its length, or as a list if its key is in `arrays`.

    Raises GgufError.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise GgufError(f"{path.name} is no GGUF file")
            version, _, count = struct.unpack("<IQQ", _exactly(file, 20))
            if version not in (2, 3) or count > MAX_KEYS:
                raise GgufError(
                    f"{path.name} has the GGUF version {version} and {counted(count, 'key')}, which is not supported"
                )
            metadata: dict[str, Any] = {}
            for _ in range(count):
                key = _string(file)
                metadata[key] = _value(file, struct.unpack("<I", _exactly(file, 4))[0], key in arrays)
            return metadata
    except (OSError, struct.error, UnicodeDecodeError) as error:
        raise GgufError(f"{path.name} cannot be read: {error}") from None


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise GgufError("the header ends too early")
    return data


def _string(file: BinaryIO) -> str:
    return _exactly(file, _length(file)).decode("utf-8", errors="replace")


def _length(file: BinaryIO) -> int:
    length: int = struct.unpack("<Q", _exactly(file, 8))[0]
    if length > MAX_STRING:
        raise GgufError(f"the header has a string of {length} bytes")
    return length


def _value(file: BinaryIO, kind: int, keep: bool) -> Any:
    if kind == _STRING:
        return _string(file)
    if kind == _ARRAY:
        element, length = struct.unpack("<IQ", _exactly(file, 12))
        if length > MAX_ARRAY or element == _ARRAY:
            raise GgufError(f"the header has an array of {length} elements of kind {element}")
        if element == _STRING:
            texts = [_exactly(file, _length(file)) for _ in range(length)]
            return [text.decode("utf-8", errors="replace") for text in texts] if keep else length
        form = f"<{length}{_form(element)[1]}"
        data = _exactly(file, struct.calcsize(form))
        return list(struct.unpack(form, data)) if keep else length
    form = _form(kind)
    return struct.unpack(form, _exactly(file, struct.calcsize(form)))[0]


def _form(kind: int) -> str:
    if kind not in _SCALARS:
        raise GgufError(f"the header has a value of the unknown kind {kind}")
    return _SCALARS[kind]
