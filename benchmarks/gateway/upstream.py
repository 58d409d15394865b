"""A fast fake engine: answers every completion at once from memory, so that what is measured is what stands before it.

    python benchmarks/gateway/upstream.py PORT

A body with `"stream":true` is answered with as many chunks as its `max_tokens` says, without a pause; everything else
with one small completion. Plain asyncio protocol, uvloop if it is installed, no checks: not a server for anything else.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from typing import cast

MODELS = json.dumps({"object": "list", "data": [{"id": "bench", "object": "model"}]}).encode()
ANSWER = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "bench",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "A red circle."}, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 100, "completion_tokens": 5, "total_tokens": 105},
    }
).encode()


def whole(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


def http_chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(delta: dict[str, str], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    fields = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "bench",
        "choices": [choice],
    }
    return b"data: " + json.dumps(fields, separators=(",", ":")).encode() + b"\n\n"


USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":100,"completion_tokens":5,"total_tokens":105}}\n\n'
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
FIRST = http_chunk(event({"role": "assistant", "content": ""}))
TOKEN = http_chunk(event({"content": " token"}))
LAST = http_chunk(event({}, "stop")) + http_chunk(USAGE) + http_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
# Chunks in one write: about what a socket takes at once.
AT_ONCE = 50


class Upstream(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self.data = b""
        self.free = asyncio.Event()
        self.free.set()

    def pause_writing(self) -> None:
        self.free.clear()

    def resume_writing(self) -> None:
        self.free.set()

    def data_received(self, data: bytes) -> None:
        self.data = self.data + data if self.data else data
        head = self.data.find(b"\r\n\r\n")
        if head < 0:
            return
        length = re.search(rb"(?i)content-length: (\d+)", self.data[:head])
        end = head + 4 + (int(length[1]) if length else 0)
        if len(self.data) < end:
            return
        request, self.data = self.data[:end], self.data[end:]
        if request.startswith(b"GET"):
            self.transport.write(whole(MODELS))
        elif b'"stream":true' in request[head : head + 200] or b'"stream":true' in request[-200:]:
            tokens = re.search(rb'"max_tokens":(\d+)', request)
            self.streaming = asyncio.ensure_future(self.stream(int(tokens[1]) if tokens else 1))
        else:
            self.transport.write(whole(ANSWER))

    async def stream(self, tokens: int) -> None:
        self.transport.write(STREAM_HEAD + FIRST)
        for sent in range(0, tokens, AT_ONCE):
            await self.free.wait()
            self.transport.write(TOKEN * min(AT_ONCE, tokens - sent))
            await asyncio.sleep(0)
        self.transport.write(LAST)


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()


if __name__ == "__main__":
    try:
        import uvloop

        uvloop.run(main())
    except ImportError:
        asyncio.run(main())
