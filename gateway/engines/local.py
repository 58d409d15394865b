"""Starts an engine as a child process, watches it, and starts it again when it dies or stops answering."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from yarl import URL

from gateway.engines.base import Engine
from gateway.engines.child import FAILURE_LABELS, EngineChild
from gateway.engines.spec import EngineSpec
from gateway.engines.startup.log import Cause
from gateway.engines.startup.smoke_test import SmokeTestFailed, run_smoke_test
from gateway.telemetry.metrics import Metrics
from modelfiles import counted

LOG = logging.getLogger("lensmith.local_engine")
# Failed starts in a row after which an engine that never worked is given up: the cause won't go away by itself.
FIRST_STARTS = 3
WRONG_ANSWER = "`lensmith verify` compares it with transformers; --engine-arg dtype=bfloat16 has float32's range."


@dataclass(frozen=True)
class Timing:
    """Seconds between health checks of the child, and before it is started again (doubled each time, then reset)."""

    starting: float = 0.2
    probe: float = 2.0
    probe_timeout: float = 5.0
    failures: int = 5  # failed probes in a row after which the child is ended and started again
    first_delay: float = 0.5
    longest_delay: float = 30.0
    stable: float = 60.0  # time in health after which the delay starts from the beginning
    stop: float = 10.0  # from SIGTERM to SIGKILL


class LocalEngine(Engine):
    """An engine in a child process, which is replaced by a new one when it fails.

    `model` is the name it serves the folder under, `name` its own, `arguments` and `environment` what its process gets
    besides the spec's and ours. `adapters` are more names that it knows: those that answer unlike the model are served.
    `vision` says whether it is tried with a picture.
    """

    started_here = True

    def __init__(
        self,
        spec: EngineSpec,
        folder: Path,
        model: str,
        *,
        name: str,
        arguments: Sequence[str] = (),
        adapters: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        vision: bool = True,
        timing: Timing | None = None,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.name = name
        self.served = [model]
        self._names = [model, *adapters]
        self.url = URL("http://127.0.0.1")
        self._folder = folder
        self._arguments = list(arguments)
        self._environment = dict(environment or {})
        self._vision = vision
        self._timing = timing or Timing()
        self._reason = "The engine has not been started."
        self._next_start = 0.0
        self._child: EngineChild | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def reason(self) -> str:
        if self.failure is not None:
            return self.failure
        wait = self._next_start - time.monotonic()
        return self._reason + (f" Next attempt in {max(1, round(wait))} s." if wait > 0 else "")

    @property
    def retry_after(self) -> float:
        return max(2.0, self._next_start - time.monotonic())

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child is not None else None

    async def start(self, metrics: Metrics) -> None:
        await super().start(metrics)
        metrics.engine_restarts.labels(self.name)  # from 0, so that the first one is an increase
        for reason in FAILURE_LABELS:
            metrics.engine_failures.labels(self.name, reason)
        self._task = asyncio.create_task(self._run(metrics))

    async def stop(self) -> None:
        """End the child: SIGTERM to its group, SIGKILL to what is left after a while."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._child is not None:
            await self._child.terminate(self._timing.stop)
        self._reason = "The engine was stopped."
        self._changed(False)
        await super().stop()

    async def exit_reason(self) -> str:
        return await self._child.wait_for_exit_reason() if self._child is not None else ""

    async def _run(self, metrics: Metrics) -> None:
        """Start a child, and a new one whenever it ends, until the engine is given up."""
        delay, failed_starts, ever_ready = self._timing.first_delay, 0, False
        while True:
            child = self._new_child()
            try:
                code = await child.run(
                    self._folder, self.served[0], self._arguments, self._environment, self._watch_health(child)
                )
            finally:
                self._changed(False)
            self._reason = child.describe_exit(code)
            child.exit_reason.set_result(self._reason)
            metrics.engine_failures.labels(self.name, child.failure_label).inc()
            if child.ready_since is not None:
                ever_ready = True
                if time.monotonic() - child.ready_since >= self._timing.stable:
                    delay = self._timing.first_delay
            elif not ever_ready:
                failed_starts += 1
            permanent = child.cause is not None and child.cause.permanent and not ever_ready
            if permanent or failed_starts >= FIRST_STARTS:
                self.failure = self._reason
                if not permanent:
                    self.failure += f" It was started {FIRST_STARTS} times and never became ready."
                LOG.error("%s", self.failure)
                self._changed(False)
                return
            self._next_start = time.monotonic() + delay
            LOG.warning("%s", self.reason)
            await asyncio.sleep(delay)
            delay = min(delay * 2, self._timing.longest_delay)
            metrics.engine_restarts.labels(self.name).inc()

    def _new_child(self) -> EngineChild:
        self._child = child = EngineChild(self.spec, self._enter_phase)
        self.key, self.url = child.key, child.url
        self._next_start, self._reason = 0.0, f"The {self.spec.name} engine is starting."
        return child

    def _enter_phase(self) -> None:
        assert self._child is not None
        phase, seconds = self._child.startup.phase, self._child.age
        self._reason = f"The {self.spec.name} engine is starting: {phase}, after {seconds:.0f} s."
        LOG.info("%s", self._reason)

    async def _watch_health(self, child: EngineChild) -> None:
        """Ask for the child's health until it ends; end it when it hangs."""
        timing, failures = self._timing, 0
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timing.probe_timeout)) as session:
            while True:
                if await self._healthy(session):
                    failures = 0
                    if not self.ready:
                        if child.ready_since is None:
                            if not await self._passes_smoke_test(session, child):
                                return
                            child.ready_since = time.monotonic()
                            self._log_ready(child)
                        self._changed(True)
                elif child.ready_since is None:
                    if child.age > self.spec.start_seconds:
                        child.kill(f"was not ready after {self.spec.start_seconds:g} s and was ended")
                        return
                else:
                    failures += 1
                    if failures >= 2:  # one may be a moment's load
                        self._reason = f"The {self.spec.name} engine does not answer."
                        self._changed(False)
                    if failures >= timing.failures:
                        child.kill(f"did not answer {counted(failures, 'health check')} and was ended")
                        return
                await asyncio.sleep(timing.starting if child.ready_since is None else timing.probe)

    async def _passes_smoke_test(self, session: aiohttp.ClientSession, child: EngineChild) -> bool:
        """Whether it answers a test picture as a working model does; ends it if it doesn't."""
        if not self.spec.planned:  # ours: it loads every adapter completely or fails
            self.served = self._names
            return True
        child.startup.enter("answering a test picture", child.age)
        self._enter_phase()
        try:
            self.served = await run_smoke_test(
                session, self.url, self.key, self._names, self._vision, self.spec.start_seconds
            )
        except SmokeTestFailed as error:
            child.cause = child.find_cause() or Cause(f"Its answer to a test picture {error}.", WRONG_ANSWER)
            child.kill("was ended before it served")
            return False
        return True

    def _log_ready(self, child: EngineChild) -> None:
        seconds = child.age
        phases = f": {child.startup.summary(seconds)}" if self.spec.planned else ""
        LOG.info("The %s engine is ready after %.1f s%s.", self.spec.name, seconds, phases)

    async def _healthy(self, session: aiohttp.ClientSession) -> bool:
        headers = {"authorization": f"Bearer {self.key}"}
        try:
            async with session.get(self.url.with_path(self.spec.health_path), headers=headers) as answer:
                return answer.status == 200
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError):
            return False
