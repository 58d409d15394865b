"""One connection to a server that we call: a request goes out, its response comes in as it is read.

By httptools' parser on asyncio's transports. General clients cost several times as much CPU time a call
(docs/decisions/2026-11-28-own-engine-client.md).
"""

from __future__ import annotations

import asyncio
from typing import cast

import httptools

# Most bytes of a head, of trailers or of a chunk's extensions; not counted is what comes with their last bytes.
MAX_HEAD = 65_536
# Bytes of an response that wait to be read, from which on no more are taken from the network.
HIGH_WATER = 262_144


class CallFailed(Exception):
    """There is no whole response."""


class NotConnected(CallFailed):
    """The server takes no connections."""


class BrokenOff(CallFailed):
    """The connection ended too early, or what came over it is no HTTP."""


class Silent(CallFailed):
    """The server sent nothing for too long."""


class Response:
    """What a server answers: its head, and its body in the pieces in which it comes.

    `complete`: all of it is here, some of it perhaps not read yet.
    """

    def __init__(self, protocol: ClientProtocol) -> None:
        self.status = 0  # until the head is here
        self.headers: dict[str, str] = {}  # names in lower case; of several with one name the first
        self.complete = False
        self.begun = False  # a byte of it has come
        self._protocol = protocol
        self._pieces: list[bytes] = []
        self._size = 0  # bytes of the pieces

    @property
    def content_type(self) -> str:
        """Without parameters, in lower case; empty if there is none."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    async def head(self) -> None:
        """Wait until the head is here. Raises CallFailed."""
        while not self.status:
            await self._protocol.wait()

    async def read_some(self) -> bytes:
        """What is here, at least a byte; empty at the body's end. Raises CallFailed."""
        protocol = self._protocol
        while not self._pieces:
            if self.complete:
                return b""
            await protocol.wait()
        pieces = self._pieces
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._pieces, self._size = [], 0
        protocol.resume_reading()
        return data

    def add(self, piece: bytes) -> bool:
        """Keep a piece until it is read; whether there is room for more."""
        self._pieces.append(piece)
        self._size += len(piece)
        return self._size < HIGH_WATER


class ClientProtocol(asyncio.Protocol):
    """`silence`: seconds without a byte after which a call is given up."""

    def __init__(self, loop: asyncio.AbstractEventLoop, silence: float) -> None:
        self._loop = loop
        self._silence = silence
        self._response: Response | None = None  # of the call in progress
        self._parser: httptools.HttpResponseParser | None = None
        self._failure: CallFailed | None = None  # no other call can be made over it
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._heard = 0.0  # when something last came or was asked for
        self._unparsed = 0  # bytes since the last piece of an response
        self._until_close = self._keep_alive = self._in_head = self._paused = False
        self.idle_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    @property
    def usable(self) -> bool:
        """Whether another call can be made over it."""
        return self._failure is None and self._response is None and not self._transport.is_closing()

    def send(self, head: bytes, body: bytes) -> Response:
        """Send a request; its response, of which nothing is here yet."""
        self._response = response = Response(self)
        self._parser = httptools.HttpResponseParser(self)
        # As aiohttp is: sloppy but harmless.
        self._parser.set_dangerous_leniencies(
            lenient_headers=True, lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True
        )
        self._in_head, self._keep_alive, self._until_close, self._unparsed = True, False, False, 0
        self._heard = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(self._silence, self._look)
        self._transport.writelines((head, body))
        return response

    async def wait(self) -> None:
        """Wait for more of the response. Raises CallFailed."""
        if self._failure is not None:
            raise self._failure
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def release(self) -> bool:
        """The call is over: whether the connection can be used again. It is closed otherwise, which ends the work."""
        response, self._response = self._response, None
        whole = response is not None and response.complete and self._keep_alive and self._failure is None
        # A server may answer before it has read the request, whose rest must not become another request's.
        if whole and not self._transport.is_closing() and not self._transport.get_write_buffer_size():
            self.resume_reading()
            return True
        self.close()
        return False

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._transport.abort()

    def resume_reading(self) -> None:
        if self._paused:
            self._paused = False
            self._heard = self._loop.time()
            self._transport.resume_reading()

    def _look(self) -> None:
        """One timer for all calls over the connection: see whether the server has been silent for too long."""
        self._timer = None
        if self._response is None or self._response.complete:
            return
        left = self._silence if self._paused else self._heard + self._silence - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        else:
            self._fail(Silent(f"nothing came for {self._silence:g} s"))

    def _fail(self, failure: CallFailed) -> None:
        if self._failure is None:
            self._failure = failure
        self._wake()
        self.close()

    def _wake(self) -> None:
        if self._waiter is None or self._waiter.done():
            return
        if self._failure is None or (self._response is not None and self._response.complete):
            self._waiter.set_result(None)
        else:
            self._waiter.set_exception(self._failure)

    # The transport's calls.

    def data_received(self, data: bytes) -> None:
        response = self._response
        if response is None or response.complete or self._parser is None:
            self._fail(BrokenOff("bytes came that belong to no response"))
            return
        self._heard = self._loop.time()
        response.begun = True
        self._unparsed += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(BrokenOff(f"what came is no HTTP/1.1: {error}"))
            return
        if self._unparsed > MAX_HEAD and not response.complete:
            self._fail(BrokenOff(f"the head is longer than {MAX_HEAD} bytes"))

    def eof_received(self) -> None:
        self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc)

    def _end(self, exc: Exception | None) -> None:
        response = self._response
        if response is not None and self._until_close and exc is None and not self._in_head:
            response.complete = True
        self._fail(BrokenOff("the connection was closed"))

    # The parser's calls.

    def on_message_begin(self) -> None:
        if self._response is not None and self._response.complete:
            self._keep_alive = False  # a second response that nobody asked for

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head and self._response is not None and not self._response.complete:  # trailers come later
            self._response.headers.setdefault(name.decode("latin-1").lower(), value.decode("latin-1"))

    def on_headers_complete(self) -> None:
        response, parser = self._response, self._parser
        if response is None or parser is None or response.complete:
            return
        status = parser.get_status_code()
        if status < 200:
            response.headers.clear()  # the response comes after it
            return
        response.status = status
        self._unparsed, self._in_head = 0, False
        self._until_close = "content-length" not in response.headers and "transfer-encoding" not in response.headers
        self._wake()

    def on_body(self, piece: bytes) -> None:
        response = self._response
        if response is None or response.complete:
            return
        self._unparsed = 0
        if not response.add(piece) and not self._paused:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def on_message_complete(self) -> None:
        response, parser = self._response, self._parser
        if response is None or parser is None or self._in_head or response.complete:
            return  # of a preliminary response (1xx), or of one that nobody asked for
        response.complete = True
        self._keep_alive = parser.should_keep_alive()
        self._wake()
