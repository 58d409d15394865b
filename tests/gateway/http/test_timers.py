"""Timers of the same length share one of the event loop's: they come in order, and those that were stopped never do."""

from __future__ import annotations

import asyncio

from gateway.http.timers import Timers


def test_timers_come_in_order_and_stopped_ones_do_not() -> None:
    async def main() -> None:
        timers, came = Timers(asyncio.get_running_loop()), list[str]()
        first, second = (timers.call_later(0.05, lambda name=name: came.append(name)) for name in "ab")  # type: ignore[misc]
        await asyncio.sleep(0.02)
        timers.call_later(0.05, lambda: came.append("later"))
        timers.call_later(0.01, lambda: came.append("short"))
        first.cancel()
        first.cancel()
        await asyncio.sleep(0.2)
        assert came == ["short", "b", "later"]
        second.cancel()
        timers.call_later(0.01, lambda: came.append("again"))
        await asyncio.sleep(0.1)
        assert came[-1] == "again"

    asyncio.run(main())


def test_a_callback_that_fails_holds_none_of_the_others_up() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda *_: None)
        timers, came = Timers(loop), list[int]()
        timers.call_later(0.01, lambda: 1 // 0)
        timers.call_later(0.01, lambda: came.append(1))
        await asyncio.sleep(0.1)
        assert came == [1]

    asyncio.run(main())
