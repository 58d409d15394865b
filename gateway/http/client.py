"""An HTTP/1.1 client for calls that are made all the time: connections are used again, bodies stay bytes."""

from __future__ import annotations

import asyncio
import base64
import socket
import ssl
from collections.abc import Mapping
from functools import lru_cache

import aiohappyeyeballs
from yarl import URL

from gateway.http.body import Deadline
from gateway.http.client_protocol import BrokenOff, ClientProtocol, NotConnected, Response

CONNECT_SECONDS = 4.0
# Below the 5 s after which uvicorn closes an idle connection, so that a request is never put on one about to close.
KEEPALIVE_SECONDS = 4.0
NEXT_ADDRESS_SECONDS = 0.25  # after which a name's next address is tried too (RFC 8305)

Origin = tuple[str, str, int]  # scheme, host, port


class Client:
    """Makes calls, and keeps connections for the next ones. To be made and used in one event loop.

    `silence`: seconds without a byte after which a call is given up.
    """

    def __init__(self, silence: float) -> None:
        self._silence = silence
        self._loop = asyncio.get_running_loop()  # to ask for it with each call costs a system call
        self._idle: dict[Origin, list[ClientProtocol]] = {}
        self._all: set[ClientProtocol] = set()
        self._sweeping: asyncio.TimerHandle | None = None
        self._tls: ssl.SSLContext | None = None

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections, those in use too."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        for protocol in self._all:
            protocol.close()
        self._all.clear()
        self._idle.clear()

    def post(self, url: URL, headers: Mapping[str, str], body: bytes, resend: bool = False) -> Call:
        """`async with client.post(…) as response:` sends a request and gives its response, whose head is here.

        Leaving the block before the response was read to its end closes the connection. A server may close an idle
        connection at the moment it is used again: with `resend`, what breaks such a connection before a byte of an
        response came is sent once more, on a new one. Redirects are not followed. Raises CallFailed.
        """
        origin, begin = _place(url)
        return Call(self, origin, _head(begin, headers, len(body)), body, resend)

    def idle(self, origin: Origin) -> ClientProtocol | None:
        """A connection that can be used again; None if there is none."""
        kept = self._idle.get(origin)
        oldest = self._loop.time() - KEEPALIVE_SECONDS
        while kept:
            protocol = kept.pop()
            if protocol.usable and protocol.idle_since > oldest:
                return protocol
            self._drop(protocol)
        return None

    def keep(self, origin: Origin, protocol: ClientProtocol) -> None:
        """A call is over. Its connection is kept for the next one, if it can be used again."""
        if not protocol.release():
            self._all.discard(protocol)
            return
        loop = self._loop
        protocol.idle_since = loop.time()
        self._idle.setdefault(origin, []).append(protocol)
        if self._sweeping is None:
            self._sweeping = loop.call_later(KEEPALIVE_SECONDS, self._sweep)

    def _drop(self, protocol: ClientProtocol) -> None:
        protocol.close()
        self._all.discard(protocol)

    def _sweep(self) -> None:
        """Close what has been idle for too long."""
        loop = self._loop
        oldest = loop.time() - KEEPALIVE_SECONDS
        for origin, kept in list(self._idle.items()):
            for protocol in kept:
                if not protocol.usable or protocol.idle_since <= oldest:
                    self._drop(protocol)
            self._idle[origin] = [protocol for protocol in kept if protocol in self._all]
            if not self._idle[origin]:
                del self._idle[origin]
        self._sweeping = loop.call_later(KEEPALIVE_SECONDS / 2, self._sweep) if self._idle else None

    async def connect(self, origin: Origin) -> ClientProtocol:
        """A new connection. Raises NotConnected."""
        scheme, host, port = origin
        if scheme == "https" and self._tls is None:
            self._tls = ssl.create_default_context()
        tls = self._tls if scheme == "https" else None
        loop = self._loop
        late = Deadline(CONNECT_SECONDS)
        try:
            addresses = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            connected = await aiohappyeyeballs.start_connection(
                addresses, happy_eyeballs_delay=NEXT_ADDRESS_SECONDS, interleave=1
            )
            try:
                connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                _, protocol = await loop.create_connection(
                    lambda: ClientProtocol(loop, self._silence),
                    sock=connected,
                    ssl=tls,
                    server_hostname=host if tls else None,
                )
            except BaseException:
                connected.close()
                raise
        except asyncio.CancelledError:
            if not late.passed:
                raise
            raise NotConnected(f"no connection came about within {CONNECT_SECONDS:g} s") from None
        except (OSError, UnicodeError) as error:  # also of TLS, and of names that are not known
            raise NotConnected(str(error)) from None
        finally:
            late.stop()
        self._all.add(protocol)
        return protocol


class Call:
    """One call; see `Client.post`."""

    def __init__(self, client: Client, origin: Origin, head: bytes, body: bytes, resend: bool) -> None:
        self._client = client
        self._origin = origin
        self._head = head
        self._body = body
        self._resend = resend
        self._protocol: ClientProtocol | None = None

    async def __aenter__(self) -> Response:
        try:
            self._protocol = self._client.idle(self._origin)
            if self._protocol is None:
                return await self._ask_anew()
            response = self._protocol.send(self._head, self._body)
            try:
                await response.head()
            except BrokenOff as broken:
                if not self._resend or response.begun:
                    raise
                return await self._ask_again(broken)
            return response
        except BaseException:
            self.end()
            raise

    async def _ask_anew(self) -> Response:
        self._protocol = await self._client.connect(self._origin)
        response = self._protocol.send(self._head, self._body)
        await response.head()
        return response

    async def _ask_again(self, broken: BrokenOff) -> Response:
        self.end()
        try:
            return await self._ask_anew()
        except NotConnected:
            raise broken from None  # it has died since, which is what the caller should know

    async def __aexit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """What leaving the block does."""
        protocol, self._protocol = self._protocol, None
        if protocol is not None:
            self._client.keep(self._origin, protocol)


@lru_cache(maxsize=256)
def _place(url: URL) -> tuple[Origin, str]:
    """Whom to connect to, and the beginning of the head that every request to one URL has. Raises ValueError."""
    if url.scheme not in ("http", "https") or not url.raw_host or not url.port:
        raise ValueError(f"{url} is not an http(s) URL")
    host = f"[{url.raw_host}]" if ":" in url.raw_host else url.raw_host
    if not url.is_default_port():
        host += f":{url.port}"
    # Compressed responses would have to be unpacked within limits, which no engine needs.
    lines = [f"POST {url.raw_path_qs} HTTP/1.1", f"host: {host}", "accept: */*", "accept-encoding: identity"]
    if url.user is not None:
        secret = base64.b64encode(f"{url.user}:{url.password or ''}".encode()).decode()
        lines.append(f"authorization: Basic {secret}")
    return (url.scheme, url.raw_host, url.port), "\r\n".join(lines)


def _head(begin: str, headers: Mapping[str, str], length: int) -> bytes:
    """Raises ValueError for a value that would break the head."""
    lines = "".join([f"\r\n{name}: {value}" for name, value in headers.items()])
    if lines.count("\n") != len(headers) or lines.count("\r") != len(headers) or "\0" in lines:
        raise ValueError("A header may not have line ends in it.")
    return f"{begin}{lines}\r\ncontent-length: {length}\r\n\r\n".encode()
