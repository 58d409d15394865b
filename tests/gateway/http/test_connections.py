"""Clients that are slow on purpose, or speak no HTTP: raw sockets against a gateway with short time-outs."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import sys
import time
from collections.abc import Iterator

import httpx
import pytest

from modelfiles.hardware.python_child import free_port
from tests.support.gateway.processes import Process, lensmith_serve, until

CHAT = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
BODY = b'{"model": "fake", "messages": [{"role": "user", "content": "hi"}]}'
REQUEST = CHAT + b"content-length: %d\r\n\r\n%b" % (len(BODY), BODY)


@pytest.fixture(scope="module")
def impatient(engine: Process) -> Iterator[Process]:
    options = ["--header-timeout", "0.4", "--body-timeout", "0.8", "--keepalive-timeout", "1", "--stall-timeout", "1"]
    with lensmith_serve("--engine", engine.url, *options) as gateway:
        gateway.wait_until("/ready", 200)
        yield gateway


@pytest.fixture
def raw(impatient: Process) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", impatient.port)) as connection:
        connection.settimeout(30)
        yield connection


def answer(raw: socket.socket) -> tuple[int, bytes]:
    response = http.client.HTTPResponse(raw)
    response.begin()
    assert response.headers["x-request-id"]
    return response.status, response.read()


def code(body: bytes) -> str:
    found: str = json.loads(body)["error"]["code"]
    return found


def rest(raw: socket.socket) -> bytes:
    """All that comes until the gateway closes the connection."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while part := raw.recv(65536):
            received += part
    return received


def trickle(raw: socket.socket, text: bytes) -> None:
    """Send a byte at a time until the gateway answers or closes."""
    for letter in text:
        raw.settimeout(0.05)
        try:
            raw.sendall(bytes([letter]))
            raw.recv(1, socket.MSG_PEEK)
            break
        except TimeoutError:
            continue
        except OSError:
            break
    else:
        raise AssertionError("the gateway waited for all of it")
    raw.settimeout(30)


def test_a_head_that_trickles_in(raw: socket.socket) -> None:
    trickle(raw, CHAT + b"x-long: " + b"y" * 1000)
    status, body = answer(raw)
    assert (status, code(body)) == (408, "request_timeout")
    assert rest(raw) == b""


def test_a_head_that_comes_in_two_pieces_is_answered(raw: socket.socket) -> None:
    raw.sendall(REQUEST[:30])
    time.sleep(0.1)
    raw.sendall(REQUEST[30:])
    assert answer(raw)[0] == 200


@pytest.mark.parametrize("sent", [b"", b"\r\n"])
def test_a_client_that_says_nothing_is_disconnected(raw: socket.socket, sent: bytes) -> None:
    raw.sendall(sent)
    assert rest(raw) == b""


def test_empty_lines_keep_no_connection_open(raw: socket.socket) -> None:
    trickle(raw, b"\r\n" * 500)
    assert rest(raw) == b""


def test_a_head_without_end(raw: socket.socket) -> None:
    raw.sendall(CHAT)
    with contextlib.suppress(OSError):
        for _ in range(5000):
            raw.sendall(b"x-more: " + b"y" * 1000 + b"\r\n")
    received = rest(raw)
    # What was sent after the answer may reset the connection before we read it.
    assert received == b"" or received.startswith(b"HTTP/1.1 431 ")


def test_a_head_that_is_too_long_is_told_so(raw: socket.socket) -> None:
    raw.sendall(CHAT)
    for _ in range(70):  # each piece is read by itself, and nothing is sent after the answer
        raw.sendall(b"x-more: " + b"y" * 1000 + b"\r\n")
        raw.settimeout(0.005)
        with contextlib.suppress(TimeoutError):
            if raw.recv(1, socket.MSG_PEEK):
                break
    raw.settimeout(30)
    status, body = answer(raw)
    assert (status, code(body)) == (431, "headers_too_large")


def test_a_body_that_trickles_in(raw: socket.socket) -> None:
    raw.sendall(CHAT + b"content-length: 5000\r\n\r\n")
    trickle(raw, BODY.ljust(5000))
    status, body = answer(raw)
    assert (status, code(body)) == (408, "request_timeout")


def test_the_rest_of_an_answered_body_is_not_waited_for(engine: Process) -> None:
    """By a gateway that takes in the rest for a second, instead of 30."""
    port = free_port()
    program = "import gateway.http.connection, lensmith; gateway.http.connection.LINGER_SECONDS = 1; lensmith.main()"
    options = ["--engine", engine.url, "--port", str(port), "--body-timeout", "0.8"]
    argv = [sys.executable, "-c", program, "serve", *options]
    with Process(argv, port) as gateway:
        gateway.wait_until("/ready", 200)
        with socket.create_connection(("127.0.0.1", port), timeout=30) as raw:
            raw.sendall(CHAT + b"content-length: 999999999\r\n\r\n")
            status, body = answer(raw)
            assert (status, code(body)) == (413, "request_too_large")
            start = time.monotonic()
            with contextlib.suppress(OSError):
                while time.monotonic() < start + 60:
                    raw.sendall(b"x")
                    time.sleep(0.02)
                raise AssertionError("the connection is still open")


def test_a_connection_is_kept_for_the_next_request_and_closed_when_none_comes(raw: socket.socket) -> None:
    for _ in range(2):
        raw.sendall(REQUEST)
        assert answer(raw)[0] == 200
    time.sleep(0.6)  # longer than a head may take
    raw.sendall(REQUEST)
    assert answer(raw)[0] == 200
    assert rest(raw) == b""


def test_two_requests_at_once_are_answered_one_after_the_other(raw: socket.socket) -> None:
    raw.sendall(REQUEST + REQUEST)
    with raw.makefile("rb") as file:
        for _ in range(2):
            assert file.readline().startswith(b"HTTP/1.1 200 ")
            length = 0
            while (line := file.readline()) != b"\r\n":
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            assert json.loads(file.read(length))["choices"]


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # a TLS client
        b"hello\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
    ],
)
def test_what_is_not_http(raw: socket.socket, sent: bytes) -> None:
    raw.sendall(sent)
    status, body = answer(raw)
    assert (status, code(body)) == (400, "invalid_http")
    assert rest(raw) == b""


def test_noise_behind_a_request_is_not_answered_into_its_stream(raw: socket.socket) -> None:
    body = BODY.replace(b'"hi"', b'"count 5 0.1"')[:-1] + b', "stream": true}'
    raw.sendall(CHAT + b"content-length: %d\r\n\r\n%b" % (len(body), body))
    first = raw.recv(10)
    raw.sendall(b"\x16\x03\x01 noise\r\n\r\n")
    assert (first + rest(raw)).count(b"HTTP/1.1 ") == 1


def test_a_client_that_offers_http_2_is_answered_in_http_1(raw: socket.socket) -> None:
    """As Java's HttpClient does by default."""
    offer = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAA\r\n"
    for _ in range(2):
        raw.sendall(REQUEST.replace(b"host: x\r\n", b"host: x\r\n" + offer))
        assert answer(raw)[0] == 200


def test_the_body_of_an_offer_in_pieces_is_never_read_as_a_request(raw: socket.socket) -> None:
    offered = CHAT + b"connection: upgrade\r\nupgrade: h2c\r\ncontent-length: %d\r\n\r\n" % len(REQUEST)
    raw.sendall(offered[:60])
    time.sleep(0.1)
    raw.sendall(offered[60:])
    assert answer(raw)[0] == 400
    with contextlib.suppress(OSError):
        raw.sendall(REQUEST)
    assert rest(raw) == b""


def test_a_client_that_does_not_read_gives_its_place_back(impatient: Process, engine: Process) -> None:
    aborted = httpx.get(engine.url + "/stats").json()["aborted"]
    body = BODY.replace(b'"hi"', b'"count 300000"')[:-1] + b', "stream": true}'
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect(("127.0.0.1", impatient.port))
        raw.sendall(CHAT + b"content-length: %d\r\n\r\n%b" % (len(body), body))
        assert raw.recv(10) == b"HTTP/1.1 2"
        until("the engine stopped", lambda: httpx.get(engine.url + "/stats").json()["aborted"] == aborted + 1)
        until("the place is free", lambda: impatient.metric("lensmith_requests_running") == 0)
    assert "Traceback" not in impatient.log()
