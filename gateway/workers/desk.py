"""The parent's side of one worker: its questions are answered, and what it holds is freed when it dies."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any

from gateway.errors import ApiError
from gateway.runtime.service import Service
from gateway.scheduling.slots import Slot
from gateway.workers.accounts import KeyAccounts, Limits
from gateway.workers.channel import Channel


class Desk:
    """`collect` gives the metrics of the parent and of the workers' processes; `on_message` gets no questions."""

    def __init__(
        self,
        worker: int,
        service: Service,
        accounts: KeyAccounts,
        collect: Callable[[], Any],
        on_message: Callable[[str, tuple[Any, ...]], None],
    ) -> None:
        self._worker = worker
        self._service = service
        self._accounts = accounts
        self._collect = collect
        self._on_message = on_message
        self._turns: dict[int, asyncio.Task[None]] = {}  # takes that wait
        self._slots: dict[int, Slot] = {}
        self._given_up: set[int] = set()
        self._full: dict[str, float | None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.channel = Channel(self._received, lambda: None)

    async def open(self, connection: socket.socket) -> None:
        await self.channel.open(connection)

    def close(self) -> None:
        """The worker is gone."""
        self.channel.close()
        for number in self._turns:
            self._give_up(number)
        for task in self._tasks:
            task.cancel()
        slots, self._slots = self._slots, {}
        for slot in slots.values():
            slot.release()
        self._accounts.lost(self._worker)

    def tell_full_queues(self) -> None:
        """Tell the worker which models' queues are full, if that has changed."""
        full = {model.name: model.slots.full_for for model in self._service.models.all}
        if full != self._full:
            self._full = full
            self.channel.send("full", full)

    def _received(self, message: tuple[Any, ...]) -> None:
        what, *arguments = message
        if what == "take":
            self._take(*arguments)
        elif what == "release":
            self._release(*arguments)
        elif what == "enter":
            self._enter(*arguments)
        elif what == "leave":
            self._accounts.leave(*arguments)
        elif what in ("exit_reason", "metrics"):
            task = asyncio.create_task(getattr(self, f"_{what}")(*arguments))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            self._on_message(what, tuple(arguments))

    def _take(self, number: int, model: str, tenant: str, weight: int, timeout: float) -> None:
        found = self._service.models.get(model)
        try:
            if found is None:  # a configuration without it came meanwhile
                raise ApiError(503, "The model is no longer served.", code="engine_unavailable", retry_after=1)
            ticket = found.slots.enter(tenant, weight, timeout)
        except ApiError as error:
            self._refuse(number, error)
            return
        slot = found.slots.started(ticket)
        if slot is not None:
            self._give(number, slot)
        else:
            self._turns[number] = asyncio.create_task(self._wait(number, found.slots.turn(ticket, timeout)))

    async def _wait(self, number: int, turn: Coroutine[Any, Any, Slot]) -> None:
        try:
            slot = await turn
            if number in self._given_up:  # in the moment that the turn came
                slot.release()
            else:
                self._give(number, slot)
        except ApiError as error:
            self._refuse(number, error)
        finally:
            del self._turns[number]
            self._given_up.discard(number)

    def _give(self, number: int, slot: Slot) -> None:
        self._slots[number] = slot
        self.channel.send("answer", number, None)

    def _refuse(self, number: int, error: ApiError) -> None:
        self.channel.send("refused", number, error.status, error.message, error.code, error.headers)

    def _give_up(self, number: int) -> None:
        """Wait for a place no longer."""
        self._given_up.add(number)
        # Not at once: what is cancelled before its first step would leave its ticket in the queue.
        asyncio.get_running_loop().call_soon(self._turns[number].cancel)

    def _release(self, number: int, served: bool = False) -> None:
        """Give a place back, one that has come or one that is waited for."""
        slot = self._slots.pop(number, None)
        if slot is not None:
            slot.release(served)
        elif number in self._turns:
            self._give_up(number)

    def _enter(self, number: int, lease: str, sha256: str, limits: Limits) -> None:
        self.channel.send("answer", number, self._accounts.enter(self._worker, lease, sha256, limits))

    async def _exit_reason(self, number: int, name: str) -> None:
        engines = [engine for engine in self._service.models.engines if engine.name == name]
        self.channel.send("answer", number, await engines[0].exit_reason() if engines else "")

    async def _metrics(self, number: int) -> None:
        self.channel.send("answer", number, await self._collect())
