"""Messages between the parent and one worker: pickled tuples over a socket pair that only these two processes have."""

from __future__ import annotations

import asyncio
import pickle
import socket
import struct
from collections.abc import Callable
from typing import Any, cast

LENGTH = struct.Struct("!I")


def pack(message: tuple[Any, ...]) -> bytes:
    data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return LENGTH.pack(len(data)) + data


def receive(connection: socket.socket) -> tuple[Any, ...]:
    """Wait for one message, before there is an event loop. Raises EOFError if the other end is closed."""
    (length,) = LENGTH.unpack(_exactly(connection, LENGTH.size))
    message: tuple[Any, ...] = pickle.loads(_exactly(connection, length))
    return message


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise EOFError
        data += part
    return data


class Channel(asyncio.Protocol):
    """One end, in an event loop. `on_message` gets each message, `on_lost` is called when the other end is gone."""

    def __init__(self, on_message: Callable[[tuple[Any, ...]], None], on_lost: Callable[[], None]) -> None:
        self._on_message = on_message
        self._on_lost = on_lost
        self._data = bytearray()
        self._outgoing: list[bytes] = []  # of this turn of the event loop; a write costs more than a message
        self._transport: asyncio.WriteTransport | None = None

    async def open(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        await asyncio.get_running_loop().create_connection(lambda: self, sock=connection)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's is no subclass

    def send(self, *message: Any) -> None:
        """Send a message; nothing happens when the other end is gone, which `on_lost` has told."""
        if not self._outgoing:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outgoing.append(pack(message))

    def _flush(self) -> None:
        data, self._outgoing = b"".join(self._outgoing), []
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        self._data += data
        while len(self._data) >= LENGTH.size:
            (length,) = LENGTH.unpack_from(self._data)
            end = LENGTH.size + length
            if len(self._data) < end:
                return
            message = pickle.loads(bytes(self._data[LENGTH.size : end]))
            del self._data[:end]
            self._on_message(message)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._on_lost()
