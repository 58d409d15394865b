"""What the gateway and its image workers write each other: a small JSON header and raw bytes, both behind their length.

A message is two lengths (4 bytes each, big endian), the header, and the bytes of a file, perhaps none.
"""

from __future__ import annotations

import asyncio
import json
import struct
from typing import Any, BinaryIO

LENGTHS = struct.Struct(">II")


def pack_head(header: dict[str, Any], file: bytes) -> bytes:
    """What goes before `file`, which is written on its own because it may be large."""
    text = json.dumps(header).encode()
    return LENGTHS.pack(len(text), len(file)) + text


def read_message(stream: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    """The next message of a blocking stream; None at its end."""
    lengths = stream.read(LENGTHS.size)
    if len(lengths) < LENGTHS.size:
        return None
    header, file = LENGTHS.unpack(lengths)
    return json.loads(stream.read(header)), stream.read(file)


async def receive_message(stream: asyncio.StreamReader) -> tuple[dict[str, Any], bytes]:
    """The next message. Raises asyncio.IncompleteReadError if the other side ends."""
    header, file = LENGTHS.unpack(await stream.readexactly(LENGTHS.size))
    return json.loads(await stream.readexactly(header)), await stream.readexactly(file)
