"""What a worker has in place of the parent's engines, queue and accounts: the same interfaces."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from functools import partial
from typing import Any

from gateway.engines.base import Engine
from gateway.errors import ApiError
from gateway.scheduling.admission import UNKNOWN_RETRY, Refused
from gateway.scheduling.slots import Slot, Slots, overloaded
from gateway.telemetry.metrics import Metrics
from gateway.tenants.account import Account, Standing
from gateway.workers.channel import Channel
from gateway.workers.setup import EngineState


class Parent:
    """Questions to the parent and their answers."""

    def __init__(self) -> None:
        self.channel: Channel | None = None  # once there is an event loop
        self.gone = False
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[Any]] = {}

    def tell(self, *message: Any) -> None:
        if self.channel is not None:
            self.channel.send(*message)

    def ask(self, what: str, *arguments: Any) -> tuple[int, asyncio.Future[Any]]:
        """The question's number, and its answer when it comes. It raises ApiError where the parent did."""
        number = next(self._numbers)
        future = self._asked[number] = asyncio.get_running_loop().create_future()
        self.tell(what, number, *arguments)
        return number, future

    def answered(self, number: int, value: Any) -> None:
        future = self._asked.pop(number, None)
        if future is not None and not future.done():
            future.set_result(value)

    def refused(self, number: int, status: int, message: str, code: str, headers: dict[str, str]) -> None:
        future = self._asked.pop(number, None)
        if future is not None and not future.done():
            future.set_exception(ApiError(status, message, code=code, headers=headers))

    def lost(self) -> None:
        """The parent is gone: nothing will be answered any more."""
        self.gone = True
        for future in self._asked.values():
            if not future.done():
                future.set_exception(ApiError(503, "The gateway is shutting down.", code="shutdown"))
        self._asked.clear()


class SharedEngine(Engine):
    """An engine that the parent watches."""

    def __init__(self, state: EngineState, parent: Parent) -> None:
        super().__init__()
        self._parent = parent
        self.update(state)

    def update(self, state: EngineState) -> None:
        self._state = state
        self.identity, self.name, self.spec, self.url, self.key = (
            state.identity,
            state.name,
            state.spec,
            state.url,
            state.key,
        )
        self.served, self.failure, self.image_pixels = state.served, state.failure, state.image_pixels
        self.started_here, self.ready = state.started_here, state.ready

    @property
    def reason(self) -> str:
        return self._state.reason

    @property
    def retry_after(self) -> float:
        return self._state.retry_after

    async def start(self, metrics: Metrics) -> None:
        metrics.expect_engine(self.name)

    async def stop(self) -> None:
        """Nothing: the parent stops it."""

    async def exit_reason(self) -> str:
        _, answer = self._parent.ask("exit_reason", self.name)
        reason: str = await answer
        return reason


class SharedSlots(Slots):
    """The places of a model, which the parent gives to all workers."""

    def __init__(self, metrics: Metrics, model: str, parent: Parent) -> None:
        super().__init__(metrics, model)
        self._model = model
        self._parent = parent
        self.told_full: float | None = None  # `full_for`, as the parent has told it last

    @property
    def full_for(self) -> float | None:
        return self.told_full

    async def take(self, tenant: str, weight: int, timeout: float) -> Slot:
        number, turn = self._parent.ask("take", self._model, tenant, weight, timeout)
        try:
            await turn
        except asyncio.CancelledError:
            self._parent.tell("release", number, False)
            raise
        return Slot(partial(self._parent.tell, "release", number))

    def timed_out(self) -> ApiError:
        return overloaded(Refused("queue_timeout", UNKNOWN_RETRY))

    def resize(self, slots: int, max_waiting: int) -> None:
        """Nothing: the parent knows its engines."""


class SharedAccounts(Account):
    """The accounts of keys, which the parent keeps for all workers."""

    def __init__(self, parent: Parent) -> None:
        self._parent = parent

    async def enter(self, sha256: str, limits: tuple[int, int, int]) -> Standing | None:
        lease = secrets.token_hex(8)
        _, answer = self._parent.ask("enter", lease, sha256, limits)
        try:
            standing: Standing = await answer
        except asyncio.CancelledError:
            self._parent.tell("leave", lease, 0)
            raise
        return standing

    def release(self, sha256: str, lease: str, tokens_per_minute: int, tokens: int) -> None:
        self._parent.tell("leave", lease, tokens)

    async def close(self) -> None:
        """Nothing is to be closed."""
