"""Timers that are nearly always stopped before they are due: one of the event loop's serves all of the same length.

Every request has several, and one of the event loop's own costs as much as parsing a small body.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary


class Timer:
    __slots__ = ("_row", "callback", "due")

    def __init__(self, due: float, callback: Callable[[], object], row: dict[Timer, None]) -> None:
        self.due = due
        self.callback: Callable[[], object] | None = callback
        self._row = row

    def cancel(self) -> None:
        self._row.pop(self, None)
        self.callback = None  # whose owner has the timer: the collector would have to take the two apart


class Timers:
    """`call_later` as the event loop's, for a few different lengths; everything else is the event loop's own."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._rows: dict[float, dict[Timer, None]] = {}  # by length in seconds; each in the order in which they are due
        self.time = loop.time
        self.create_task = loop.create_task

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def current_task(self) -> asyncio.Task[Any] | None:
        return asyncio.current_task(self._loop)

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        row = self._rows.get(seconds)
        if row is None:
            row = self._rows[seconds] = {}
            self._loop.call_later(seconds, self._run, seconds)
        timer = Timer(self.time() + seconds, callback, row)
        row[timer] = None
        return timer

    def _run(self, seconds: float) -> None:
        row, now = self._rows[seconds], self.time()
        try:
            while row:
                timer = next(iter(row))
                if timer.due > now:
                    break
                del row[timer]
                callback, timer.callback = timer.callback, None
                if callback is not None:
                    callback()
        finally:
            if row:
                self._loop.call_at(next(iter(row)).due, self._run, seconds)
            else:
                del self._rows[seconds]


_TIMERS: WeakKeyDictionary[asyncio.AbstractEventLoop, Timers] = WeakKeyDictionary()


def timers_of(loop: asyncio.AbstractEventLoop) -> Timers:
    """The timers of an event loop. Whoever needs them for each request keeps them: to ask for the loop costs a call."""
    found = _TIMERS.get(loop)
    if found is None:
        found = _TIMERS[loop] = Timers(loop)
    return found
