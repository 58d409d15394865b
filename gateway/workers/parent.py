"""The parent of several gateway processes: it starts the engines once, gives out places, keeps its workers alive.

Each worker has a socket of its own at the port, which stays open here: who has connected to a worker that dies and was
not accepted yet waits for the one that comes in its place.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import signal
import socket
from collections.abc import Sequence
from typing import Any

import click
import uvloop
from prometheus_client.metrics_core import Metric

from gateway.config.schema import Config
from gateway.runtime.models import Models
from gateway.runtime.service import Load, Service
from gateway.server import announce, bind_shared
from gateway.telemetry.logs import configure_logging
from gateway.telemetry.metrics import Metrics
from gateway.workers.accounts import KeyAccounts
from gateway.workers.board import Board
from gateway.workers.desk import Desk
from gateway.workers.log import LOG
from gateway.workers.merged_metrics import DIRECTORY, forget_gauges, make_directory
from gateway.workers.setup import EngineState, Setup
from modelfiles.hardware.python_child import die_with_parent, module_command

PERIOD = 0.1  # seconds between two looks at what workers should know
REFRESH_SECONDS = 1.0  # that a worker gets to bring its gauges up to date
FIRST_STARTS = 3  # failed starts in a row of a worker after which the gateway gives up
FIRST_DELAY, LONGEST_DELAY = 0.1, 10.0  # seconds before a worker is started again
END_SECONDS = 3.0  # from the end of the time to drain to SIGKILL


class Remembered:
    """A `Load`, and the configuration that it gave last."""

    config: Config

    def __init__(self, load: Load) -> None:
        self._load = load

    def __call__(self, metrics: Metrics, before: Models | None) -> tuple[Config, Models]:
        self.config, models = self._load(metrics, before)
        return self.config, models


def run_workers(
    service: Service, load: Remembered, bound: socket.socket, management: socket.socket | None, reloads: bool
) -> None:
    """`gateway.server.run` with several processes. Raises ClickException when no engine or no worker ever works."""
    configure_logging()
    count = service.config.workers
    port = management.getsockname()[1] if management is not None else None
    places = [bind_shared(at, count) for at in (bound, management) if at is not None]
    announce(*(places[at][0] if at < len(places) else None for at in (0, 1)))  # type: ignore[arg-type]
    supervisor = Supervisor(service, load, list(zip(*places, strict=True)), port)
    uvloop.run(supervisor.run(reloads))
    problem = service.failure or supervisor.failure
    if problem is not None:
        raise click.ClickException(problem)


class Supervisor:
    """`sockets`: those of each worker."""

    def __init__(
        self,
        service: Service,
        load: Remembered,
        sockets: Sequence[Sequence[socket.socket]],
        management_port: int | None,
    ) -> None:
        self.failure: str | None = None
        self._service = service
        self._load = load
        self._sockets = sockets
        self._management_port = management_port
        self._board = Board.create(len(sockets))
        self._accounts = KeyAccounts()
        self._metrics = make_directory()
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._desks: dict[int, Desk] = {}
        self._serving: set[int] = set()
        self._drained: set[int] = set()
        self._all_drained = asyncio.Event()
        self._stop = asyncio.Event()
        self._signals = 0
        self._told: tuple[Config, list[EngineState]] | None = None
        self._refreshes: dict[int, tuple[set[int], list[Metric], asyncio.Event]] = {}
        self._numbers = itertools.count()

    async def run(self, reloads: bool) -> None:
        """Until a signal, or until nothing can work any more."""
        loop, service = asyncio.get_running_loop(), self._service
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._signalled)
        if reloads:
            loop.add_signal_handler(signal.SIGHUP, lambda: loop.create_task(service.reload()))
        service.on_failure = self._stop.set
        try:
            await service.start()
            telling = asyncio.create_task(self._tell())
            keeping = [asyncio.create_task(self._keep(worker)) for worker in range(len(self._sockets))]
            await self._stop.wait()
            await self._drain(keeping)
            telling.cancel()
            await service.stop()
        finally:
            shutil.rmtree(self._metrics, ignore_errors=True)

    def _signalled(self) -> None:
        """The first signal lets requests end, the second one cuts them short."""
        self._signals += 1
        self._stop.set()
        if self._signals > 1:
            self._send(signal.SIGTERM)

    def _send(self, number: int) -> None:
        for process in self._processes.values():
            process.send_signal(number)

    async def _drain(self, keeping: list[asyncio.Task[None]]) -> None:
        """Each worker lets its requests end; none leaves before all have, so that the port is answered meanwhile."""
        settings = self._service.gateway.settings
        self._send(signal.SIGTERM)
        if self._service.failure is not None or self.failure is not None:
            self._send(signal.SIGTERM)
        self._look_at_drained()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._all_drained.wait(), settings.drain_pause + settings.drain_seconds)
        self._send(signal.SIGTERM)
        await asyncio.wait(keeping, timeout=END_SECONDS)
        for process in self._processes.values():
            LOG.warning("A gateway process did not end within %g s and is killed: pid %d.", END_SECONDS, process.pid)
        self._send(signal.SIGKILL)
        await asyncio.wait(keeping)

    def _look_at_drained(self) -> None:
        if not self._processes.keys() - self._drained:
            self._all_drained.set()

    async def _keep(self, worker: int) -> None:
        """Start a worker, and a new one whenever it dies."""
        delay, failed = FIRST_DELAY, 0
        while not self._stop.is_set():
            code = await self._run(worker)
            if self._stop.is_set():
                return
            if worker in self._serving:
                delay, failed = FIRST_DELAY, 0
            else:
                failed += 1
                if failed >= FIRST_STARTS:
                    self.failure = f"A gateway process did not start: it ended with {code} {FIRST_STARTS} times."
                    self._stop.set()
                    return
            self._serving.discard(worker)
            LOG.warning("A gateway process ended (%s); it is started again.", code)
            self._service.metrics.worker_restarts.inc()
            await asyncio.sleep(delay)
            delay = min(delay * 2, LONGEST_DELAY)

    async def _run(self, worker: int) -> int:
        """One process of a worker, from its start to its exit code."""
        ours, theirs = socket.socketpair()
        sockets = [listening.fileno() for listening in self._sockets[worker]]
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *module_command("gateway.workers"),
                str(theirs.fileno()),
                env={**os.environ, DIRECTORY: str(self._metrics)},
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), self._board.descriptor, *sockets),
                start_new_session=True,  # a terminal's Ctrl-C is the parent's to pass on
                preexec_fn=die_with_parent(os.getpid()),
            )
        self._processes[worker] = process
        desk = self._desks[worker] = Desk(
            worker, self._service, self._accounts, self._collect, lambda what, more: self._heard(worker, what, more)
        )
        await desk.open(ours)
        states = [EngineState.of(engine) for engine in self._service.models.engines]
        setup = Setup(
            worker,
            len(self._sockets),
            self._load.config,
            states,
            sockets,
            self._board.descriptor,
            self._management_port,
        )
        desk.channel.send("setup", setup)
        try:
            return await process.wait()
        finally:
            del self._processes[worker], self._desks[worker]
            desk.close()
            if self._stop.is_set():
                self._look_at_drained()
            self._board.cells[worker] = 0
            forget_gauges(self._metrics, process.pid)

    def _heard(self, worker: int, what: str, more: tuple[Any, ...]) -> None:
        if what == "serving":
            self._serving.add(worker)
            if self._stop.is_set():  # it came too late to be told with the others
                self._processes[worker].send_signal(signal.SIGTERM)
        elif what == "drained":
            self._drained.add(worker)
            self._look_at_drained()
        elif what == "refreshed":
            number, families = more
            if number in self._refreshes:
                waiting, found, done = self._refreshes[number]
                found += families
                waiting.discard(worker)
                if not waiting:
                    done.set()

    async def _tell(self) -> None:
        """Keep the workers informed: of the engines, of the configuration, of full queues."""
        while True:
            states = [EngineState.of(engine) for engine in self._service.models.engines]
            before, self._told = self._told, (self._load.config, states)
            if before is not None and before[0] is not self._load.config:
                self._to_all("configuration", *self._told)
            elif before is None or before[1] != states:
                self._to_all("engines", states)
            for desk in self._desks.values():
                desk.tell_full_queues()
            await asyncio.sleep(PERIOD)

    def _to_all(self, *message: Any) -> None:
        for desk in self._desks.values():
            desk.channel.send(*message)

    async def _collect(self) -> list[Metric]:
        """The parent's own metrics and the workers' `process_*`, once all have brought their gauges up to date."""
        number = next(self._numbers)
        found: list[Metric] = list(self._service.metrics.registry.collect())
        done = asyncio.Event()
        self._refreshes[number] = set(self._desks.keys() & self._serving), found, done
        self._to_all("refresh", number)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(done.wait(), REFRESH_SECONDS)
        del self._refreshes[number]
        return found
