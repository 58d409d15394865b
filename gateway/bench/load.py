"""A level of load, spread over processes: so many requests at once, or so many begun a second."""

from __future__ import annotations

import asyncio
import contextlib
import math
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait

import aiohttp

from gateway.bench.client import RequestRecord, ask
from gateway.bench.request_set import RequestSet

PROGRESS_SECONDS = 0.25
# More streams in one process would add to the times that it measures.
STREAMS_A_PROCESS = 16
# Bytes of bodies in the memory of all processes together; beyond them, bodies are sent again.
BODIES_LIMIT = 2 * 1024**3


@dataclass(frozen=True)
class LoadLevel:
    """`requests` in all; closed loop with `concurrency` at once, or open loop with `rate` begun a second (Poisson).

    `warmup` requests are sent before, at once, and not counted. `seed` keeps the bodies of levels apart.
    """

    requests: int
    warmup: int
    concurrency: int = 0
    rate: float = 0.0
    seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.rate:g} req/s" if self.rate else str(self.concurrency)

    def share(self, index: int, processes: int) -> LoadLevel:
        """The part of it that process `index` of `processes` does."""

        def part(total: int) -> int:
            return total // processes + (index < total % processes)

        return LoadLevel(
            part(self.requests),
            part(self.warmup),
            part(self.concurrency),
            self.rate / processes,
            self.seed + index * 1_000_003,
        )


@dataclass(frozen=True)
class Endpoint:
    """Where the requests go: chat completions' URL, the headers of each request, seconds after which one has failed."""

    url: str
    headers: dict[str, str]
    timeout: float


@dataclass(frozen=True)
class LevelResult:
    """The result of a level. busy: the largest share of a core that a load process used; distinct: different bodies."""

    records: list[RequestRecord]
    busy: float
    distinct: int


class GeneratorDied(Exception):
    """A load process ended before its time; the message is for the user."""


def processes_for(level: LoadLevel) -> int:
    """How many processes a level needs, leaving most cores to what is measured."""
    streams = level.concurrency or math.ceil(level.rate)
    return max(1, min(math.ceil(streams / STREAMS_A_PROCESS), (os.cpu_count() or 1) // 4, level.requests))


def run_level(
    endpoint: Endpoint,
    request_set: RequestSet,
    level: LoadLevel,
    processes: int,
    report_progress: Callable[[str, int], None],
) -> LevelResult:
    """Run one level. Calls `report_progress(phase, requests done)` now and then. Raises GeneratorDied."""
    processes = max(1, min(processes, level.requests, level.concurrency or level.requests))
    context = multiprocessing.get_context("spawn")
    pipes: list[Connection] = []
    children = []
    try:
        for index in range(processes):
            ours, theirs = context.Pipe()
            job = (endpoint, request_set, level.share(index, processes), BODIES_LIMIT // processes)
            child = context.Process(target=work, args=(theirs, *job), daemon=True)
            child.start()
            theirs.close()
            pipes.append(ours)
            children.append(child)
        distinct = 0
        report_progress("making bodies", 0)
        for step in ("warming up", "running"):
            for pipe in pipes:
                distinct += receive(pipe)
            report_progress(step, 0)
            for pipe in pipes:
                pipe.send(time.monotonic() + 0.05)
        return LevelResult(*collect(pipes, report_progress), distinct)
    finally:
        for child in children:
            child.terminate()
            child.join()


def receive(pipe: Connection) -> int:
    try:
        number: int = pipe.recv()
    except EOFError:
        raise GeneratorDied("A process that makes the load ended; its message is above.") from None
    return number


def collect(pipes: list[Connection], report_progress: Callable[[str, int], None]) -> tuple[list[RequestRecord], float]:
    """All records of a running level, and the largest share of a core that a process used."""
    records: list[RequestRecord] = []
    busy, done, open_pipes = 0.0, dict.fromkeys(range(len(pipes)), 0), list(pipes)
    while open_pipes:
        for ready in wait(open_pipes):
            assert isinstance(ready, Connection)
            try:
                message = ready.recv()
            except EOFError:
                raise GeneratorDied("A process that makes the load ended; its message is above.") from None
            if isinstance(message, int):
                done[pipes.index(ready)] = message
                report_progress("running", sum(done.values()))
            else:
                records += message[0]
                busy = max(busy, message[1])
                open_pipes.remove(ready)
    return sorted(records, key=lambda record: record.start), busy


def work(pipe: Connection, endpoint: Endpoint, request_set: RequestSet, level: LoadLevel, limit: int) -> None:
    """A load process: makes bodies, warms up and runs when the parent says so, then sends its records."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    bodies: list[bytes] = []
    size = 0
    try:
        for number in range(level.requests):
            if size > limit:
                break
            bodies.append(request_set.body(level.seed + number))
            size += len(bodies[-1])
        warmup = [request_set.body(level.seed + level.requests + n) for n in range(min(level.warmup, len(bodies)))]
    except OSError as error:
        sys.exit(f"lensmith bench: {error}")
    with contextlib.suppress(BrokenPipeError, EOFError):  # the parent has ended
        asyncio.run(LoadGenerator(endpoint, level, bodies, pipe).run(warmup))


class LoadGenerator:
    """The event loop's part of a load process."""

    def __init__(self, endpoint: Endpoint, level: LoadLevel, bodies: list[bytes], pipe: Connection) -> None:
        self.endpoint = endpoint
        self.level = level
        self.bodies = bodies
        self.pipe = pipe
        self.records: list[RequestRecord] = []
        self._numbers = iter(range(level.requests))

    async def run(self, warmup: list[bytes]) -> None:
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=self.endpoint.timeout),
            headers=self.endpoint.headers,
            read_bufsize=2**20,
        ) as session:
            self.pipe.send(len(self.bodies))
            self.pipe.recv()
            await asyncio.gather(*(ask(session, self.endpoint.url, body, time.monotonic()) for body in warmup))
            self.pipe.send(0)
            begin = self.pipe.recv()
            await asyncio.sleep(begin - time.monotonic())
            cpu, began = time.process_time(), time.monotonic()
            load = asyncio.ensure_future(self._open(session, begin) if self.level.rate else self._closed(session))
            progress = asyncio.create_task(self._progress())
            await asyncio.wait([load, progress], return_when=asyncio.FIRST_COMPLETED)
            busy = (time.process_time() - cpu) / max(time.monotonic() - began, 1e-9)
            progress.cancel()
            if load.done():
                load.result()
                self.pipe.send((self.records, busy))
            else:  # nobody reads the progress: the parent has ended
                load.cancel()

    async def _closed(self, session: aiohttp.ClientSession) -> None:
        async def worker() -> None:
            for number in self._numbers:
                await self._one(session, number, time.monotonic())

        await asyncio.gather(*(worker() for _ in range(self.level.concurrency)))

    async def _open(self, session: aiohttp.ClientSession, begin: float) -> None:
        """Every request at its time, however many are still unanswered; its times count from when it was due."""
        tasks = []
        for number, due in enumerate(arrivals(self.level, begin)):
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            tasks.append(asyncio.create_task(self._one(session, number, due)))
        await asyncio.gather(*tasks)

    async def _one(self, session: aiohttp.ClientSession, number: int, due: float) -> None:
        body = self.bodies[number % len(self.bodies)]
        self.records.append(await ask(session, self.endpoint.url, body, due))

    async def _progress(self) -> None:
        while True:
            await asyncio.sleep(PROGRESS_SECONDS)
            self.pipe.send(len(self.records))


def arrivals(level: LoadLevel, begin: float) -> Iterator[float]:
    """When each request is due: a Poisson process of `level.rate` a second."""
    rng = random.Random(level.seed)
    due = begin
    for _ in range(level.requests):
        due += rng.expovariate(level.rate)
        yield due
