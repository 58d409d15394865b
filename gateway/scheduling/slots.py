"""Admission for coroutines: wait for a slot, release it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from gateway.errors import ApiError
from gateway.scheduling.admission import Admission, Refused, Ticket
from gateway.telemetry.metrics import Metrics


class Slots:
    """The slots of one model; `model` is its label in the metrics."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._admission = Admission(1, 0)  # until `resize` says how many there are
        self._metrics = metrics
        metrics.expect_model(model)
        metrics.running.labels(model).set_function(lambda: self._admission.running)
        metrics.waiting.labels(model).set_function(lambda: self._admission.waiting)
        self._waiting: dict[Ticket, asyncio.Future[None]] = {}

    @property
    def full_for(self) -> float | None:
        """While the queue is full, the seconds after which to come again."""
        return self._admission.retry_after() if self._admission.full else None

    def check(self) -> None:
        """Raises ApiError 503 if the queue is full now, before work is done for a request that `take` would refuse."""
        wait = self.full_for
        if wait is not None:
            raise overloaded(Refused("queue_full", wait))

    async def take(self, tenant: str, weight: int, timeout: float) -> Slot:
        """Wait for a slot for at most `timeout` seconds. Raises ApiError 503 with a Retry-After."""
        ticket = self.enter(tenant, weight, timeout)
        return self.started(ticket) or await self.turn(ticket, timeout)

    def enter(self, tenant: str, weight: int, timeout: float) -> Ticket:
        """The first step of `take`: a ticket, which runs or waits. Raises ApiError 503 with a Retry-After."""
        try:
            ticket = self._admission.enter(tenant, weight, timeout)
        except Refused as refused:
            raise overloaded(refused) from None
        if ticket.started is None:
            self._waiting[ticket] = asyncio.get_running_loop().create_future()
        return ticket

    def started(self, ticket: Ticket) -> Slot | None:
        """The slot of a ticket that runs; None if it waits, and is to wait for its `turn`."""
        return None if ticket.started is None else self._slot(ticket)

    async def turn(self, ticket: Ticket, timeout: float) -> Slot:
        """The slot of a ticket that waits, when it comes. Raises ApiError 503 after `timeout` seconds."""
        await self._wait(ticket, timeout)
        return self._slot(ticket)

    def _slot(self, ticket: Ticket) -> Slot:
        self._metrics.queue_seconds.observe((ticket.started or 0.0) - ticket.arrived)
        self._metrics.batch_size.observe(self._admission.running)
        return Slot(partial(self.release, ticket))

    async def _wait(self, ticket: Ticket, timeout: float) -> None:
        turn = self._waiting[ticket]
        # A timer, not `asyncio.wait_for`: before Python 3.12 that loses a cancellation which comes with the turn.
        timer = asyncio.get_running_loop().call_later(timeout, _expire, turn)
        try:
            await turn
        except asyncio.TimeoutError:
            self.release(ticket, served=False)
            raise self.timed_out() from None
        except asyncio.CancelledError:
            self.release(ticket, served=False)
            raise
        finally:
            timer.cancel()
            del self._waiting[ticket]

    def timed_out(self) -> ApiError:
        return overloaded(Refused("queue_timeout", self._admission.retry_after()))

    def release(self, ticket: Ticket, served: bool) -> None:
        self._run(self._admission.release(ticket, served))

    def resize(self, slots: int, max_waiting: int) -> None:
        """Change the numbers of slots and of waiting requests. Requests that run or wait now go on."""
        self._admission.max_waiting = max_waiting
        self._run(self._admission.resize(slots))

    def _run(self, started: list[Ticket]) -> None:
        for ticket in started:
            turn = self._waiting[ticket]
            if not turn.done():
                turn.set_result(None)


def _expire(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_exception(asyncio.TimeoutError())


class Slot:
    """A slot at the engine; `release` may be called more than once."""

    def __init__(self, release: Callable[[bool], None]) -> None:
        self._release: Callable[[bool], None] | None = release

    def release(self, served: bool = False) -> None:
        """`served`: whether the answer was given to its end."""
        if self._release is not None:
            release, self._release = self._release, None
            release(served)


def overloaded(refused: Refused) -> ApiError:
    full = refused.reason == "queue_full"
    message = "Too many requests are waiting." if full else "The engine is busy; no place would become free in time."
    return ApiError(503, message, code=refused.reason, retry_after=refused.retry_after)
