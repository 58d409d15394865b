"""A request and its answer on a client's connection: uvicorn's cycle, with fewer copies, writes and steps.

A body that came in one piece is not copied, an answer's head goes out with the first piece of its body, and an answer
to HTTP/1.0 has no chunks.
"""

from __future__ import annotations

import re
from typing import Any

from starlette.types import Message
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

# What would break a head, or let a value write lines of its own into it (RFC 9110, section 5).
BAD_NAME = re.compile(rb'[\x00-\x1f\x7f()<>@,;:\\\[\]={} \t"]')
BAD_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
# Bytes of a body that wait to be asked for, from which on no more are taken from the network. As many may come at once.
MAX_WAITING = 262_144
BODILESS = (204, 304)  # statuses of answers that never have one


class Cycle(RequestResponseCycle):
    def __init__(self, http_version: str, **options: Any) -> None:
        """`options`: uvicorn's."""
        super().__init__(**options)
        self._http_version = http_version
        self._pieces: list[bytes] = []
        self.waiting_bytes = 0  # of the body, not asked for yet
        self._head = b""  # of the answer, until it is written

    def add(self, piece: bytes) -> None:
        """Keep a piece of the request's body until it is asked for. Whoever waits is woken for much or for its end."""
        self._pieces.append(piece)
        self.waiting_bytes += len(piece)
        if self.waiting_bytes > MAX_WAITING:
            self.message_event.set()

    async def receive(self) -> Any:
        """ASGI's `receive`."""
        if self.waiting_for_100_continue and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.waiting_for_100_continue = False
        if not self.disconnected and not self.response_complete:
            self.flow.resume_reading()
            await self.message_event.wait()
            self.message_event.clear()
        if self.disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        pieces, self._pieces, self.waiting_bytes = self._pieces, [], 0
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        return {"type": "http.request", "body": body, "more_body": self.more_body}

    async def send(self, message: Any) -> None:
        """ASGI's `send`. Raises RuntimeError for an answer that would break HTTP."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if self.response_complete:
            raise RuntimeError("An answer was sent twice.")
        if message["type"] == "http.response.start":
            if self.response_started:
                raise RuntimeError("An answer was begun twice.")
            self._head = self._written_head(message)
            return
        if not self._head and not self.response_started:
            raise RuntimeError("An answer's body was sent before its head.")
        last = not message.get("more_body", False)
        self._write(message.get("body", b""), last)
        if last:
            self.response_complete = True
            self.message_event.set()
            if not self.keep_alive:
                self.transport.close()
            self.on_response()

    def _written_head(self, message: Message) -> bytes:
        status: int = message["status"]
        names, values, lines = [], [], [STATUS_LINE[status]]
        length, closes = None, False
        for name, value in (*self.default_headers, *message.get("headers", ())):
            name = name.lower()
            names.append(name)
            values.append(value)
            lines.append(b"%b: %b\r\n" % (name, value))
            if name == b"content-length":
                length = int(value)
            elif name == b"connection" and b"close" in value.lower():
                closes = True
        if BAD_NAME.search(b"".join(names)) or BAD_VALUE.search(b"".join(values)):
            raise RuntimeError("A header of the answer has characters that headers may not have.")
        if closes:
            self.keep_alive = False
        elif not self.keep_alive:
            lines.append(b"connection: close\r\n")
        self.expected_content_length = length or 0
        # Without a length an answer to HTTP/1.0, which knows no chunks, ends with the connection.
        bodiless = status in BODILESS or self.scope["method"] == "HEAD"
        self.chunked_encoding = length is None and not bodiless and self._http_version != "1.0"
        if self.chunked_encoding:
            lines.append(b"transfer-encoding: chunked\r\n")
        self._until_close = length is None and not self.chunked_encoding and not bodiless
        lines.append(b"\r\n")
        return b"".join(lines)

    def _write(self, body: bytes, last: bool) -> None:
        if self.scope["method"] == "HEAD":
            body = b""
        elif self.chunked_encoding:
            chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            body = chunk + b"0\r\n\r\n" if last else chunk
        elif not self._until_close:
            self.expected_content_length -= len(body)
            if self.expected_content_length < 0 or (last and self.expected_content_length):
                raise RuntimeError("An answer's body is not as long as its content-length says.")
        head, self._head = self._head, b""
        self.response_started = True
        if head or body:
            self.transport.write(head + body if head else body)
