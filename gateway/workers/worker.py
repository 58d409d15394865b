"""One gateway process of several: the whole request path, with the parent's engines, queue and accounts."""

from __future__ import annotations

import asyncio
import os
import socket
import warnings
from functools import partial
from typing import Any

from prometheus_client.metrics_core import Metric

from gateway.config.schema import Config
from gateway.runtime.build import build
from gateway.runtime.exposition import set_replica_gauges
from gateway.runtime.models import Models
from gateway.runtime.service import Service, Shares
from gateway.server import GatewayServer, make_server
from gateway.telemetry.metrics import Metrics
from gateway.tenants.keys import KeyRing
from gateway.workers.board import Board, SharedByteBudget
from gateway.workers.channel import Channel, receive
from gateway.workers.log import LOG
from gateway.workers.merged_metrics import DIRECTORY, exposition, process_metrics, worker_metrics
from gateway.workers.setup import EngineState, Setup
from gateway.workers.stand_ins import Parent, SharedAccounts, SharedEngine, SharedSlots


class WorkerService(Service):
    """A service whose configuration and engines are what the parent says."""

    def __init__(self, setup: Setup, connection: socket.socket) -> None:
        self.parent = Parent()
        self._connection = connection
        self._config = setup.config
        self._shared: dict[Any, SharedEngine] = {}
        self._take_over(setup.engines)
        board = Board(setup.board, setup.workers)
        shares = Shares(setup.workers, lambda limit: SharedByteBudget(limit, board, setup.worker))
        ring = None
        if setup.config.keys is not None and setup.config.redis is None:
            ring = KeyRing(setup.config.keys, SharedAccounts(self.parent))
        super().__init__(self._from_parent, Metrics(), ring, shares)

    def _from_parent(self, metrics: Metrics, before: Models | None) -> tuple[Config, Models]:
        slots = partial(SharedSlots, parent=self.parent)
        return self._config, build(self._config, metrics, before, self._shared.values(), slots)

    def _take_over(self, states: list[EngineState]) -> None:
        for state in states:
            if state.identity in self._shared:
                self._shared[state.identity].update(state)
            else:
                self._shared[state.identity] = SharedEngine(state, self.parent)

    async def start(self) -> None:
        self.parent.channel = Channel(self._received, self.parent.lost)
        await self.parent.channel.open(self._connection)
        await super().start()

    def _received(self, message: tuple[Any, ...]) -> None:
        what, *arguments = message
        if what == "answer":
            self.parent.answered(*arguments)
        elif what == "refused":
            self.parent.refused(*arguments)
        elif what == "full":
            for name, wait in arguments[0].items():
                model = self.models.get(name)
                if model is not None and isinstance(model.slots, SharedSlots):
                    model.slots.told_full = wait
        elif what == "engines":
            self._take_over(arguments[0])
            self._changed()
        elif what == "configuration":
            self._config = arguments[0]
            self._take_over(arguments[1])
            self._following = asyncio.create_task(self.reload())
        elif what == "refresh":
            set_replica_gauges(self.models, self.metrics)
            self.parent.tell("refreshed", arguments[0], process_metrics())

    async def own_metrics(self) -> bytes:
        _, answer = self.parent.ask("metrics")
        others: list[Metric] = await answer
        return exposition([*others, *worker_metrics(os.environ[DIRECTORY])])


class WorkerServer(GatewayServer):
    """Tells the parent how far it is; when it has drained it goes on refusing requests until the others have, too."""

    _service: WorkerService
    _told = ""

    async def on_tick(self, counter: int) -> bool:
        if counter == 0:
            self._tell("serving")
        return await super().on_tick(counter)

    def on_drained(self, late: bool) -> None:
        if late or self._service.parent.gone:
            self.should_exit = True  # otherwise the parent's second signal sets it
        self._tell("drained")

    def _tell(self, what: str) -> None:
        if what != self._told:
            self._told = what
            self._service.parent.tell(what)


def main(descriptor: int) -> None:
    """`descriptor`: of the socket to the parent."""
    # That labels are cleared of this process's own copies alone is what is meant.
    warnings.filterwarnings("ignore", module="prometheus_client")
    connection = socket.socket(fileno=descriptor)
    try:
        _, setup = receive(connection)
    except EOFError:  # the parent is gone already
        return
    sockets = [socket.socket(fileno=number) for number in setup.sockets]
    service = WorkerService(setup, connection)
    server = make_server(service, sockets, setup.management_port, kind=WorkerServer)
    LOG.info("Gateway process %d of %d: pid %d.", setup.worker + 1, setup.workers, os.getpid())
    server.run(sockets=sockets)
