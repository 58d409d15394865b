"""The call to an engine over connections that the engine closes whenever it likes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from yarl import URL

from gateway.engines.client import new_session, post, read_all
from gateway.errors import ApiError

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"


class Engine:
    """Answers by script: a connection's n-th request is answered if its entry is true, else the connection is broken.

    Connections beyond the script are not taken.
    """

    def __init__(self, *script: list[bool]) -> None:
        self.script = list(script)
        self.requests = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answers in self.script.pop(0) if self.script else []:
            head = await reader.readuntil(b"\r\n\r\n")
            size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            await reader.readexactly(size)
            self.requests += 1
            if not answers:
                break
            writer.write(ANSWER)
        writer.close()


def run(engine: Engine, calls: int, check: Callable[[list[object]], None], listens_on: bool = True) -> None:
    async def main() -> None:
        server = await asyncio.start_server(engine.serve, "127.0.0.1", 0)
        url = URL(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/chat/completions")
        found: list[object] = []
        async with new_session(5.0) as session:
            for number in range(calls):
                if number and not listens_on:
                    server.close()
                try:
                    async with post(session, url, b"{}", None, {}) as response:
                        found.append(await read_all(response))
                except ApiError as error:
                    found.append(error.status)
        server.close()
        check(found)

    asyncio.run(main())


def test_a_request_on_an_idle_connection_that_breaks_is_sent_again_on_a_new_one() -> None:
    engine = Engine([True, False], [True])
    run(engine, 2, lambda found: None)
    assert engine.requests == 3

    def both(found: list[object]) -> None:
        assert found == [b"{}", b"{}"]

    run(Engine([True, False], [True]), 2, both)


def test_it_is_sent_again_once_only() -> None:
    engine = Engine([True, False], [False], [True])

    def failed(found: list[object]) -> None:
        assert found == [b"{}", 502]

    run(engine, 2, failed)
    assert engine.requests == 3


def test_a_new_connection_that_breaks_is_a_failure_at_once() -> None:
    engine = Engine([False], [True])

    def failed(found: list[object]) -> None:
        assert found == [502]

    run(engine, 1, failed)
    assert engine.requests == 1


@pytest.mark.parametrize("status", [502])
def test_an_engine_that_has_died_since_is_one_that_broke_off(status: int) -> None:
    def failed(found: list[object]) -> None:
        assert found == [b"{}", status]

    run(Engine([True, False]), 2, failed, listens_on=False)
