"""The HTTP client against servers that do whatever they like: what is whole is given, what is not has a name."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import uvloop
from yarl import URL

from gateway.http.client import Client
from gateway.http.client_protocol import HIGH_WATER, BrokenOff, CallFailed, NotConnected, Response, Silent

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Use = Callable[[Client, URL], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\n"


async def read_request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    return head, await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))


def run(serve: Serve, use: Use, silence: float = 5.0, tls: ssl.SSLContext | None = None) -> int:
    """How many connections the server got."""
    connections = 0

    async def main() -> None:
        nonlocal connections

        async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal connections
            connections += 1
            try:
                await serve(reader, writer)
            except (ConnectionError, asyncio.IncompleteReadError):
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(on_connection, "127.0.0.1", 0, ssl=tls)
        url = URL(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/chat?a=b")
        async with Client(silence) as client:
            await asyncio.wait_for(use(client, url), 20)
        server.close()
        await asyncio.sleep(0.02)  # for the connections to end in the loop that has them

    uvloop.run(main())  # as the gateway does
    return connections


async def body_of(response: Response) -> bytes:
    data = b""
    while piece := await response.read_some():
        data += piece
    return data


async def ask(client: Client, url: URL, body: bytes = b"{}", resend: bool = False) -> bytes:
    async with client.post(url, {}, body, resend) as response:
        return await body_of(response)


def always(*pieces: bytes, pause: float = 0.0) -> Serve:
    """A server that answers every request with these bytes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(pause)

    return serve


def once(*pieces: bytes) -> Serve:
    """A server that answers with these bytes and closes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        for piece in pieces:
            writer.write(piece)
            await writer.drain()

    return serve


@pytest.mark.parametrize(
    ("pieces", "body"),
    [
        ((OK + b"content-length: 2\r\n\r\n{}",), b"{}"),
        ((OK + b"content-length: 0\r\n\r\n",), b""),
        ((OK + b"transfer-encoding: chunked\r\n\r\n", b"1\r\n{\r\n", b"1\r\n}\r\n0\r\n\r\n"), b"{}"),
        ((OK + b"transfer-encoding: chunked\r\n\r\n2;x=y\r\n{}\r\n0\r\n\r\n",), b"{}"),
        ((OK + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nstatus: 500\r\nx: y\r\n\r\n",), b"{}"),
        ((b"HTTP/1.1 100 Continue\r\nx: y\r\n\r\n" + OK + b"content-length: 2\r\n\r\n{}",), b"{}"),
        ((b"HTTP/1.1 103 Early\r\ncontent-length: 9\r\n\r\n", OK + b"content-length: 2\r\n\r\n{}"), b"{}"),
        ((OK + b"\r\n", b"until the end",), b"until the end"),
        ((b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\n{}",), b"{}"),
        ((OK + b"Content-Length:2\r\nX-Y:\tz\r\n\r\n{}",), b"{}"),
        ((b"HTTP/1.1 200\r\ncontent-length: 2\r\n\r\n{}",), b"{}"),
    ],
)  # fmt: skip
def test_a_whole_answer_however_it_is_framed_and_cut(pieces: tuple[bytes, ...], body: bytes) -> None:
    async def use(client: Client, url: URL) -> None:
        async with client.post(url, {"x-a": "b"}, b"{}") as response:
            assert response.status == 200
            assert "x" not in response.headers
            assert await body_of(response) == body

    run(once(*pieces), use)
    run(once(*(bytes([byte]) for byte in b"".join(pieces))), use)


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"HTTP/1.1 20",
        OK + b"content-len",
        OK + b"content-length: 3\r\n\r\n{}",
        OK + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n",
        OK + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nx: y",
        OK + b"transfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
        OK + b"transfer-encoding: chunked\r\n\r\n1\r\n{}\r\n0\r\n\r\n",
        OK + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}",
        OK + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n{}",
        OK + b"content-length: -2\r\n\r\n{}",
        b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nbytes",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        OK + b"x: " + b"y" * 1_000_000,
        OK + b"x: y\r\n" * 200_000,
        OK + b"transfer-encoding: chunked\r\n\r\n0\r\n" + b"x: " + b"y" * 1_000_000,
        OK + b"transfer-encoding: chunked\r\n\r\n2;" + b"y" * 1_000_000,
    ],
)
def test_what_is_no_whole_answer_is_broken_off(sent: bytes) -> None:
    async def use(client: Client, url: URL) -> None:
        with pytest.raises(BrokenOff):
            await ask(client, url)

    run(once(sent), use)


def test_what_came_before_the_end_is_given_first() -> None:
    async def use(client: Client, url: URL) -> None:
        async with client.post(url, {}, b"{}") as response:
            await asyncio.sleep(0.1)
            assert await response.read_some() == b"half"
            with pytest.raises(BrokenOff):
                await response.read_some()

    run(once(OK + b"content-length: 9\r\n\r\nhalf"), use)


def test_a_reset_is_broken_off() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.abort()

    async def use(client: Client, url: URL) -> None:
        with pytest.raises(BrokenOff):
            await ask(client, url, b"x" * 5_000_000)

    run(serve, use)


def test_connections_are_used_again_and_bodies_arrive_as_they_are() -> None:
    seen: list[tuple[bytes, bytes]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            seen.append(await read_request(reader))
            writer.write(OK + b"content-length: 2\r\n\r\n{}")

    async def use(client: Client, url: URL) -> None:
        for size in (0, 2, 3_000_000):
            async with client.post(url, {"x-a": "b", "content-type": "c"}, b"x" * size) as response:
                assert await body_of(response) == b"{}"
        assert [len(body) for _, body in seen] == [0, 2, 3_000_000]
        lines = seen[0][0].decode().split("\r\n")
        assert lines[0] == "POST /v1/chat?a=b HTTP/1.1"
        assert {"x-a: b", "content-type: c", f"host: 127.0.0.1:{url.port}"} < set(lines)

    assert run(serve, use) == 1


@pytest.mark.parametrize(
    "sent",
    [
        OK + b"connection: close\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\n{}",
        OK + b"content-length: 2\r\n\r\n{}" + OK + b"content-length: 6\r\n\r\nsecond",
        OK + b"content-length: 2\r\n\r\n{}junk",
    ],
)
def test_a_connection_that_may_hold_anything_else_is_not_used_again(sent: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            writer.write(sent)

    async def use(client: Client, url: URL) -> None:
        for _ in range(3):
            try:
                assert await ask(client, url) == b"{}"
            except BrokenOff:
                assert b"junk" in sent

    assert run(serve, use) == 3


def test_bytes_on_an_idle_connection_are_nobodys_answer() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(OK + b"content-length: 2\r\n\r\n{}")
        await asyncio.sleep(0.05)
        writer.write(OK + b"content-length: 6\r\n\r\nstrays")
        await read_request(reader)

    async def use(client: Client, url: URL) -> None:
        for _ in range(2):
            assert await ask(client, url) == b"{}"
            await asyncio.sleep(0.15)

    assert run(serve, use) == 2


def test_an_answer_before_the_request_was_taken_is_given_and_ends_the_connection() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Large\r\ncontent-length: 2\r\n\r\n{}")
        await asyncio.sleep(0.2)

    async def use(client: Client, url: URL) -> None:
        for _ in range(2):
            async with client.post(url, {}, b"x" * 30_000_000) as response:
                assert response.status == 413
                assert await body_of(response) == b"{}"

    assert run(serve, use) == 2


@pytest.mark.parametrize("sent", [b"", OK, OK + b"content-length: 4\r\n\r\n{}"])
def test_silence_has_an_end(sent: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(sent)
        await reader.read()

    async def use(client: Client, url: URL) -> None:
        with pytest.raises(Silent):
            await ask(client, url)

    run(serve, use, silence=0.2)


def test_a_slow_drip_is_not_silence_and_neither_is_a_reader_that_takes_its_time() -> None:
    async def drip(client: Client, url: URL) -> None:
        assert await ask(client, url) == b"abcdef"

    pieces = (OK + b"content-length: 6\r\n\r\n", b"a", b"b", b"c", b"d", b"e", b"f")
    run(always(*pieces, pause=0.1), drip, silence=0.3)

    async def slow_reader(client: Client, url: URL) -> None:
        async with client.post(url, {}, b"{}") as response:
            await asyncio.sleep(0.5)
            assert len(await body_of(response)) == 40 * HIGH_WATER

    body = b"x" * (40 * HIGH_WATER)
    run(once(OK + b"content-length: %d\r\n\r\n" % len(body), body), slow_reader, silence=0.3)


def test_a_reader_that_takes_nothing_stops_the_sender() -> None:
    sent = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await read_request(reader)
        writer.write(OK + b"\r\n")
        while sent < 100 * HIGH_WATER:
            writer.write(b"x" * HIGH_WATER)
            await writer.drain()
            sent += HIGH_WATER

    async def use(client: Client, url: URL) -> None:
        async with client.post(url, {}, b"{}") as response:
            await asyncio.sleep(0.5)
            assert sent < 80 * HIGH_WATER
            assert len(await body_of(response)) == 100 * HIGH_WATER

    run(serve, use)


@pytest.mark.parametrize("begun", [False, True])
def test_leaving_and_cancelling_close_the_connection(begun: bool) -> None:
    closed = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        if begun:
            writer.write(OK + b"content-length: 9\r\n\r\nhalf")
        assert await reader.read() == b""
        closed.set()

    async def use(client: Client, url: URL) -> None:
        task = asyncio.create_task(ask(client, url))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await closed.wait()
        if begun:
            closed.clear()
            async with client.post(url, {}, b"{}") as response:
                assert await response.read_some() == b"half"
            await closed.wait()

    run(serve, use)


@pytest.mark.parametrize(("partial", "resend", "asked"), [(b"", True, 3), (b"", False, 2), (b"HTTP/1.1", True, 2)])
def test_only_what_broke_before_a_byte_came_is_sent_again(partial: bytes, resend: bool, asked: int) -> None:
    requests = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        while True:
            await read_request(reader)
            requests += 1
            if requests == 2:
                writer.write(partial)
                return
            writer.write(OK + b"content-length: 2\r\n\r\n{}")

    async def use(client: Client, url: URL) -> None:
        await ask(client, url)
        if asked == 3:
            assert await ask(client, url, resend=resend) == b"{}"
        else:
            with pytest.raises(BrokenOff):
                await ask(client, url, resend=resend)

    run(serve, use)
    assert requests == asked


def test_an_idle_connection_that_was_closed_is_not_used() -> None:
    async def use(client: Client, url: URL) -> None:
        for _ in range(3):
            assert await ask(client, url) == b"{}"
            await asyncio.sleep(0.05)

    assert run(once(OK + b"content-length: 2\r\n\r\n{}"), use) == 3


def test_many_at_once() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            _, body = await read_request(reader)
            await asyncio.sleep(0)
            writer.write(OK + b"content-length: %d\r\n\r\n" % len(body) + body)

    async def use(client: Client, url: URL) -> None:
        for _ in range(3):
            bodies = [b"%d" % number * 1000 for number in range(200)]
            assert await asyncio.gather(*(ask(client, url, body) for body in bodies)) == bodies

    assert run(serve, use) <= 200


def test_nobody_there_and_names_that_are_none() -> None:
    async def use(client: Client, url: URL) -> None:
        for wrong in ("http://127.0.0.1:1/", "http://no-such-host.invalid/", f"https://127.0.0.1:{url.port}/"):
            with pytest.raises(NotConnected):
                await ask(client, URL(wrong))

    async def no_tls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)

    run(no_tls, use)


def test_a_header_cannot_break_the_head() -> None:
    async def use(client: Client, url: URL) -> None:
        for value in ("a\r\nb: c", "a\nb", "a\0"):
            with pytest.raises(ValueError, match="line ends"):
                await ask_with({"x": value}, client, url)

    async def ask_with(headers: dict[str, str], client: Client, url: URL) -> None:
        async with client.post(url, headers, b""):
            pass

    assert run(once(b""), use) == 0


def test_user_and_password_of_an_url_are_sent() -> None:
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append((await read_request(reader))[0])
        writer.write(OK + b"content-length: 2\r\n\r\n{}")

    async def use(client: Client, url: URL) -> None:
        await ask(client, url.with_user("me").with_password("secret"))

    run(serve, use)
    assert b"authorization: Basic bWU6c2VjcmV0\r\n" in heads[0]


def test_a_close_ends_the_calls_in_progress() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def use(client: Client, url: URL) -> None:
        task = asyncio.create_task(ask(client, url))
        await asyncio.sleep(0.1)
        await client.close()
        with pytest.raises(CallFailed):
            await task

    run(serve, use)


def test_tls_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cryptography", reason="makes the certificate")
    certificate = self_signed(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    serve = always(OK + b"content-length: 2\r\n\r\n{}")

    async def refused(client: Client, url: URL) -> None:
        with pytest.raises(NotConnected):
            await ask(client, url.with_scheme("https").with_host("localhost"))

    run(serve, refused, tls=tls)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))

    async def trusted(client: Client, url: URL) -> None:
        for _ in range(2):
            assert await ask(client, url.with_scheme("https").with_host("localhost")) == b"{}"
        with pytest.raises(NotConnected):
            await ask(client, url.with_scheme("https"))  # the certificate is not for 127.0.0.1

    assert run(serve, trusted, tls=tls) == 1


def self_signed(folder: Path) -> Path:
    """A file with a key and its certificate for the name localhost."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(timezone.utc)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(days=1), now + timedelta(days=1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    pem = serialization.Encoding.PEM
    path = folder / "certificate.pem"
    path.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + builder.sign(key, hashes.SHA256()).public_bytes(pem)
    )
    return path
