"""The call to an engine over connections that the engine closes whenever it likes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from yarl import URL

from gateway.engines.client import post, read_all
from gateway.errors import ApiError
from gateway.http.client import Client

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


def run(
    engine: Engine, calls: int, check: Callable[[list[object]], None], listens_on: bool = True, resend: bool = True
) -> None:
    async def main() -> None:
        server = await asyncio.start_server(engine.serve, "127.0.0.1", 0)
        url = URL(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/chat/completions")
        found: list[object] = []
        async with Client(5.0) as client:
            for number in range(calls):
                if number and not listens_on:
                    server.close()
                try:
                    async with post(client, url, b"{}", None, {}, resend) as response:
                        found.append(await read_all(response))
                except ApiError as error:
                    found.append(error.status)
        server.close()
        await asyncio.sleep(0.05)  # for the connections to be closed in the loop that has them
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


def test_it_is_not_sent_again_where_another_engine_can_be_asked() -> None:
    engine = Engine([True, False], [True])
    run(engine, 2, lambda found: None, resend=False)
    assert engine.requests == 2


def test_an_engine_that_has_died_since_is_one_that_broke_off() -> None:
    def failed(found: list[object]) -> None:
        assert found == [b"{}", 502]

    run(Engine([True, False]), 2, failed, listens_on=False)
