"""A client's connection: uvicorn's, with the limits on a request's head that it leaves to a proxy before it.

uvicorn 0.54 waits for ever for a head that comes a byte at a time, and keeps a head of any length.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import socket
from typing import Any, ClassVar
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from gateway.config.settings import Settings
from gateway.errors import ApiError
from gateway.http.cycle import MAX_WAITING, Cycle
from gateway.http.timers import Timer, timers_of

# An offer to go on in another protocol, such as HTTP/2 by Java's client. httptools 0.9 takes the body of such a request
# for the other protocol's bytes; a server may ignore the offer (RFC 9110, section 7.8), so this line is taken out.
UPGRADE = re.compile(rb"\r\nupgrade:[^\r\n]*", re.IGNORECASE)
MAX_HEAD = 65_536  # bytes; not counted is what comes with the head's first and last bytes


LINGER_SECONDS = 30.0


class LingeringTransport:
    """A transport whose `close`, while a request's body still comes, sends the answer first and takes in the rest.

    Closed at once, it would reset the connection, and the client's kernel throws away an answer that it has not read
    yet (RFC 9112, section 9.6).
    """

    def __init__(self, transport: asyncio.Transport, connection: Connection) -> None:
        self._transport = transport
        self._connection = connection
        self.lingers = False
        self.write = transport.write  # the one that every answer calls

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self.lingers or self._transport.is_closing()

    def close(self) -> None:
        if self.lingers or not self._connection.in_body or self._transport.is_closing():
            self._transport.close()
            return
        self.lingers = True
        self._transport.write_eof()
        self._connection.flow.resume_reading()
        self._connection.loop.call_later(LINGER_SECONDS, self._transport.close)


class Connection(HttpToolsProtocol):
    settings: ClassVar[Settings]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.loop = timers_of(self.loop)  # type: ignore[assignment]
        self._in_head = False
        self.in_body = False
        self._head_bytes = 0
        self._deadline: asyncio.TimerHandle | Timer | None = None  # runs while nothing is being served

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(LingeringTransport(transport, self))  # type: ignore[arg-type]
        self._start_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_deadline()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        self._in_head, self.in_body, self._head_bytes = True, False, 0
        self._stop_deadline()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """As uvicorn's, with a cycle of our own."""
        self._in_head, self.in_body = False, True
        parser, scope, previous = self.parser, self.scope, self.cycle
        version = parser.get_http_version()
        url = httptools.parse_url(self.url)
        path = url.path.decode("ascii")
        scope["method"] = parser.get_method().decode("ascii")
        scope["http_version"] = version
        scope["path"] = unquote(path) if "%" in path else path
        scope["raw_path"] = url.path
        scope["query_string"] = url.query or b""
        # After an offer to upgrade whose line came in pieces, what follows must not be read as a request.
        keep_alive = version != "1.0" and parser.should_keep_alive() and not parser.should_upgrade()
        self.cycle: Cycle = Cycle(
            version,
            scope=scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,  # requests have lines of their own in the gateway's log
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=keep_alive,
            on_response=self.on_response_complete,
        )
        if previous is None or previous.response_complete:
            task = self.loop.create_task(self.cycle.run_asgi(self.app))
            task.add_done_callback(self.tasks.discard)
            self.tasks.add(task)
        else:  # requests sent without waiting for answers take turns
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    def on_body(self, body: bytes) -> None:
        if not self.cycle.response_complete:
            self.cycle.add(body)

    def on_message_complete(self) -> None:
        self.in_body = False
        super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return  # it lingers, and this is the rest of a body whose request has been answered
        was_in_head = self._in_head
        if not was_in_head and not self.in_body:
            end = data.find(b"\r\n\r\n")
            if UPGRADE.search(data, 0, end + 1):
                data = UPGRADE.sub(b"", data[:end]) + data[end:]
        super().data_received(data)
        # Not for a body that is all here: to stop reading and to start again are two system calls.
        if self.in_body and self.cycle.waiting_bytes > MAX_WAITING:
            self.flow.pause_reading()
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_deadline()
            return
        if self.transport.is_closing():
            return
        if was_in_head and self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD:
                self._refuse(ApiError(431, f"The headers are longer than {MAX_HEAD} bytes.", code="headers_too_large"))
                return
        if self._deadline is None:
            self._start_deadline()

    def send_400_response(self, msg: str) -> None:
        self._refuse(ApiError(400, "This is not a valid HTTP request.", code="invalid_http"))

    def _start_deadline(self) -> None:
        # What still comes of a body is thrown away if the request has been answered, for a while.
        seconds = self.settings.body_timeout if self.in_body else self.settings.header_timeout
        self._deadline = self.loop.call_later(seconds, self._expire)

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _expire(self) -> None:
        self._deadline = None
        if self._in_head:
            seconds = self.settings.header_timeout
            self._refuse(ApiError(408, f"The headers did not come within {seconds:g} s.", code="request_timeout"))
        elif not self.transport.is_closing():
            self.transport.close()

    def _refuse(self, error: ApiError) -> None:
        """Answer what never became a request, and close. Into an answer that is being sent nothing is written."""
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.close()
            return
        body = error.body()
        request_id = b"req-" + secrets.token_hex(12).encode()
        head = b"content-type: application/json\r\nx-request-id: %b\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(STATUS_LINE[error.status] + head % (request_id, len(body)) + body)
        self.transport.close()


def connection_class(settings: Settings) -> type[Connection]:
    """What uvicorn makes of every connection."""
    return type("Connection", (Connection,), {"settings": settings})


def drop_stalled(listening: socket.socket, seconds: float) -> None:
    """Let the kernel end a connection whose client takes no bytes, or is gone without a word, for so long.

    Connections take these options over from the socket they come in at. tcp(7): TCP_USER_TIMEOUT also ends one whose
    receive window stays closed, and a keep-alive probe that nobody answers.
    """
    probe = max(1, round(seconds / 3))
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(seconds * 1000))
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, probe)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, probe)
