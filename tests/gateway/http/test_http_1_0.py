"""Proxies that speak HTTP/1.0, as nginx does by default: refusals arrive, and answers have no chunks."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.gateway.processes import Process, lensmith_serve
from tests.support.gateway.requests import CHAT, ask

SIZE = 3_000_000


@pytest.fixture(scope="module")
def guarded(engine: Process, key_file: Path, add: Callable[..., str]) -> Iterator[tuple[Process, str]]:
    secret = add("first")
    with lensmith_serve(
        *("--engine", engine.url, "--keys", str(key_file)), *("--max-body-bytes", "1000000")
    ) as gateway:
        gateway.wait_until("/ready", 200)
        yield gateway, secret


def exchange(port: int, head: str, body: bytes, version: str = "1.0") -> bytes:
    """Everything that comes until the gateway closes; the body is sent whole first, as by a proxy."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(30)
        start = f"POST {CHAT} HTTP/{version}\r\nhost: x\r\n{head}content-length: {len(body)}\r\n\r\n"
        connection.sendall(start.encode() + body)
        received = b""
        while data := connection.recv(65536):
            received += data
        return received


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("", b"401"),
        ("authorization: Bearer KEY\r\n", b"413"),
        ("authorization: Bearer KEY\r\ncontent-type: text/plain\r\n", b"415"),
    ],
)
def test_an_early_refusal_arrives(guarded: tuple[Process, str], version: str, head: str, status: bytes) -> None:
    gateway, secret = guarded
    for _ in range(5):
        sent = f"{head.replace('KEY', secret)}connection: close\r\n"
        answer = exchange(gateway.port, sent, b"a" * SIZE, version)
        assert answer.split(b" ")[1] == status
        assert answer.endswith(b"}"), "the whole answer"
    assert gateway.wait_until("/health", 200)


def test_a_stream_to_http_1_0_has_no_chunks(gateway: Process) -> None:
    body = json.dumps({"model": "fake", "messages": ask("count 3"), "stream": True}).encode()
    head, _, events = exchange(gateway.port, "content-type: application/json\r\n", body).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert events.startswith(b"data: {")
    assert events.endswith(b"data: [DONE]\n\n")


def test_a_whole_answer_to_http_1_0_has_its_length(gateway: Process) -> None:
    body = json.dumps({"model": "fake", "messages": ask("count 3")}).encode()
    head, _, answer = exchange(gateway.port, "content-type: application/json\r\n", body).partition(b"\r\n\r\n")
    assert b"content-length: %d" % len(answer) in head.lower()
    assert json.loads(answer)["choices"][0]["message"]["content"] == "0 1 2 "
