"""Server-sent events that follow a file. Their ids are byte offsets, so a reader goes on where it stopped."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import StreamingResponse

POLL = 0.25  # seconds between two looks at the file
KEEPALIVE = 15.0  # seconds of silence after which a comment shows that the connection lives
CHUNK = 256 * 1024  # most bytes of one event
MAX_LINE = 64 * 1024  # a longer line is cut


def follow_file(request: Request, path: Path, over: Callable[[], bool], offset: int = 0) -> StreamingResponse:
    """An answer with an event "lines" (data: a JSON list of lines) for what is in the file from `offset` on and what
    comes.

    The header Last-Event-ID wins over `offset`. Events: "lines"; "reset" if the file became shorter, after which it
    comes again from its beginning; "end" once `over()` and all has been sent, after which the reader closes.
    """
    last = request.headers.get("last-event-id", "")
    begin = int(last) if last.isdecimal() and len(last) < 16 else offset
    headers = {"x-accel-buffering": "no", "cache-control": "no-store"}
    return StreamingResponse(_events(path, over, begin), media_type="text/event-stream", headers=headers)


async def _events(path: Path, over: Callable[[], bool], offset: int) -> AsyncIterator[bytes]:
    yield b"retry: 1000\n\n"
    quiet = 0.0
    while True:
        final = await asyncio.to_thread(over)  # before the read: what is written until then is read
        data, size = await asyncio.to_thread(_read, path, offset)
        if size < offset:
            offset, quiet = 0, 0.0
            yield b"event: reset\nid: 0\ndata:\n\n"
            continue
        end = data.rfind(b"\n") + 1
        if not end and (final or len(data) >= CHUNK):
            end = len(data)
        if end:
            lines = [line[:MAX_LINE].decode("utf-8", "replace") for line in data[:end].splitlines()]
            offset, quiet = offset + end, 0.0
            yield b"event: lines\nid: %d\ndata: %s\n\n" % (offset, json.dumps(lines).encode())
            continue
        if final:
            yield b"event: end\ndata:\n\n"
            return
        await asyncio.sleep(POLL)
        quiet += POLL
        if quiet >= KEEPALIVE:
            quiet = 0.0
            yield b": alive\n\n"


def _read(path: Path, offset: int) -> tuple[bytes, int]:
    """Up to CHUNK bytes from `offset` on, and the file's size."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(offset)
            return file.read(CHUNK), size
    except FileNotFoundError:
        return b"", offset
