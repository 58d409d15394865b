"""How an answer is written on its connection, with a small ASGI application behind the gateway's server side."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvicorn

from gateway.config.settings import Settings
from gateway.http.body import Deadline
from gateway.http.connection import connection_class
from gateway.http.cycle import MAX_WAITING, Cycle
from gateway.http.timers import Timer

App = Callable[[Any, Any, Any], Awaitable[None]]
START = {"type": "http.response.start", "status": 200}
REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


def begin(*headers: tuple[bytes, bytes], status: int = 200) -> dict[str, Any]:
    return {**START, "status": status, "headers": headers}


def piece(body: bytes, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": more}


def sends(*messages: dict[str, Any], pause: float = 0.0) -> App:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in messages:
            await send(message)
            await asyncio.sleep(pause)

    return app


async def with_server(app: App, talk: Callable[[int], Awaitable[bytes]]) -> bytes:
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, http=connection_class(Settings()), lifespan="off", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve([listening]))
    try:
        return await talk(listening.getsockname()[1])
    finally:
        server.should_exit = True
        await serving


def received(app: App, request: bytes = REQUEST, reads: int = 0) -> bytes:
    """What comes for a request: so many reads of it, or all until it is silent for a while."""

    async def talk(port: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        found = b""
        try:
            while data := await asyncio.wait_for(reader.read(65536), 5 if not found or reads else 0.3):
                found += data
                reads_left = reads and reads - 1
                if reads and not reads_left:
                    break
        except TimeoutError:
            pass
        writer.close()
        return found

    return asyncio.run(with_server(app, talk))


@pytest.mark.parametrize("length", [(), ((b"content-length", b"5"),)])
def test_the_head_comes_with_the_first_piece_of_the_body(length: tuple[tuple[bytes, bytes], ...]) -> None:
    app = sends(begin(*length), piece(b"hel", more=True), piece(b"lo"), pause=0.2)
    first = received(app, reads=1)
    head, _, body = first.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK")
    assert b"hel" in body
    assert b"lo" not in body, "it comes when it is there"


@pytest.mark.parametrize(
    "messages",
    [
        (begin((b"x-name", b"a\r\nset-cookie: b=c")), piece(b"")),
        (begin((b"x name", b"a")), piece(b"")),
        (begin((b"content-length", b"2")), piece(b"longer")),
        (begin((b"content-length", b"9")), piece(b"short")),
        (piece(b"without a head"),),
        (begin(),),
    ],
)
def test_an_answer_that_would_break_http_is_a_defect(messages: tuple[dict[str, Any], ...]) -> None:
    found = received(sends(*messages))
    assert found.startswith(b"HTTP/1.1 500 ")
    assert found.endswith(b"Internal Server Error"), "nothing of it went out"
    assert b"set-cookie" not in found


def test_an_answer_that_breaks_off_is_not_taken_for_a_whole_one() -> None:
    found = received(sends(begin((b"content-length", b"9")), piece(b"short", more=True), piece(b"")))
    assert found.endswith(b"\r\n\r\nshort"), "and the connection is closed"


@pytest.mark.parametrize(("request_", "status"), [(REQUEST, 204), (REQUEST.replace(b"GET", b"HEAD"), 200)])
def test_an_answer_without_a_body_has_no_chunks(request_: bytes, status: int) -> None:
    found = received(sends(begin(status=status), piece(b"")), request_)
    assert found.endswith(b"\r\n\r\n")
    assert b"chunked" not in found


def bodies_of(sizes: list[int]) -> list[int]:
    """Sizes of the messages in which a body comes that is sent in pieces of these sizes."""
    came: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        more = True
        while more:
            message = await receive()
            came.append(len(message["body"]))
            more = message["more_body"]
        await send(begin())
        await send(piece(b"done"))

    async def talk(port: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % sum(sizes))
        for size in sizes:
            writer.write(bytes(size))
            await writer.drain()
            await asyncio.sleep(0.05)
        found = await reader.readuntil(b"done")
        writer.close()
        return found

    asyncio.run(with_server(app, talk))
    return came


def test_a_body_in_pieces_is_given_on_once() -> None:
    assert bodies_of([1, 70_000, 60_000]) == [130_001]


def test_of_a_large_body_no_more_than_a_part_waits() -> None:
    came = bodies_of([300_000] * 4)
    assert sum(came) == 1_200_000
    assert max(came) <= 2 * MAX_WAITING


def test_requests_leave_nothing_to_the_collector() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        late = Deadline(60.0)
        await receive()
        await send(begin())
        await send(piece(b"hi"))
        late.stop()

    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        assert received(app, REQUEST * 20).count(b"hi") == 20
        gc.collect()
        left = [found for found in gc.garbage if isinstance(found, Cycle | Timer)]
        assert len(left) <= 2, "the connection's last"
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
