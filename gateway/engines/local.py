"""Starts an engine as a child process, watches it, and starts it again when it dies or stops answering."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from yarl import URL

from gateway.engines.base import Engine
from gateway.engines.process import die_with_parent, free_port, signal_group
from gateway.engines.smoke_test import Unsound, prove
from gateway.engines.spec import EngineSpec
from gateway.engines.startup_log import MEMORY, Cause, Startup, explain, is_dead, is_noise
from gateway.telemetry.metrics import Metrics

LOG_LINES = 200
LINE_LIMIT = 2000
# Failed starts in a row after which an engine that never worked is given up: the cause won't go away by itself.
FIRST_STARTS = 3

DYING_SECONDS = 0.3  # from a connection that broke to the end of the process, if that was why
LAST_WORDS_SECONDS = 0.5  # for a traceback to come
DIED = "stopped working and was ended"
WRONG_ANSWER = "`lensmith verify` compares it with transformers; --engine-arg dtype=bfloat16 has float32's range."


@dataclass(frozen=True)
class Timing:
    """Seconds between looks at the child's health, and before it is started again (doubled each time, then reset)."""

    starting: float = 0.2
    probe: float = 2.0
    probe_timeout: float = 5.0
    failures: int = 5  # failed probes in a row after which the child is ended and started again
    first_delay: float = 0.5
    longest_delay: float = 30.0
    stable: float = 60.0  # time in health after which the delay starts from the beginning
    stop: float = 10.0  # from SIGTERM to SIGKILL


class LocalEngine(Engine):
    """An engine in a child process with a process group, a key and a loopback port of its own.

    `model` is the name it serves the folder under, `name` its own, `arguments` and `environment` what its process gets
    besides the spec's and ours. `adapters` are more names that it knows: those that answer unlike the model are served.
    `vision` says whether it is tried with a picture.
    """

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
        say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
    ) -> None:
        super().__init__()
        self.spec = spec
        self.name = name
        self.served = [model]
        self._names = [model, *adapters]
        self.url = URL("http://127.0.0.1")
        self.log: deque[str] = deque(maxlen=LOG_LINES)
        self._folder = folder
        self._arguments = list(arguments)
        self._environment = dict(environment or {})
        self._vision = vision
        self._timing = timing or Timing()
        self._say = say
        self._reason = "The engine has not been started."
        self._next_start = 0.0
        self._ready_since: float | None = None
        self._ended_because = ""
        self._cause: Cause | None = None
        self._told: asyncio.Future[str] | None = None  # this process's obituary
        self._started = 0.0
        self._startup = Startup()
        self._process: asyncio.subprocess.Process | None = None
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
        return self._process.pid if self._process is not None else None

    async def start(self, metrics: Metrics) -> None:
        await super().start(metrics)
        metrics.engine_restarts.labels(self.name)  # from 0, so that the first restart is an increase
        self._task = asyncio.create_task(self._run(metrics))

    async def stop(self) -> None:
        """End the child: SIGTERM to its group, SIGKILL to what is left after a while."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._end_child()
        self._reason = "The engine was stopped."
        self._changed(False)
        await super().stop()

    async def last_words(self) -> str:
        process, obituary = self._process, self._told
        if process is None or obituary is None:
            return ""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(process.wait(), DYING_SECONDS)
        if process.returncode is not None:
            await asyncio.wait([obituary], timeout=2.0)
        return obituary.result() if obituary.done() else ""

    async def _run(self, metrics: Metrics) -> None:
        delay, failed_starts, ever_ready = self._timing.first_delay, 0, False
        while True:
            code = await self._run_once()
            self._cause = self._cause or explain(self.log)
            self._reason = self._obituary(code)
            if self._told is not None:
                self._told.set_result(self._reason)
            metrics.engine_failures.labels(self.name, self._failure_reason()).inc()
            if self._ready_since is not None:
                ever_ready = True
                if time.monotonic() - self._ready_since >= self._timing.stable:
                    delay = self._timing.first_delay
            elif not ever_ready:
                failed_starts += 1
            lasting = self._cause is not None and self._cause.lasting and not ever_ready
            if lasting or failed_starts >= FIRST_STARTS:
                self.failure = self._reason
                if not lasting:
                    self.failure += f" It was started {FIRST_STARTS} times and never became ready."
                self._say(f"lensmith: {self.failure}")
                self._changed(False)
                return
            self._next_start = time.monotonic() + delay
            self._say(f"lensmith: {self.reason}")
            await asyncio.sleep(delay)
            delay = min(delay * 2, self._timing.longest_delay)
            metrics.engine_restarts.labels(self.name).inc()

    def _obituary(self, code: int) -> str:
        how = f"exited with code {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"
        if self._ready_since is None and self.spec.planned:
            how += f" while {self._startup.phase}"
        what = f"The {self.spec.name} engine {self._ended_because or how}."
        if self._cause is not None:
            return f"{what} {self._cause}"
        if code == -signal.SIGKILL and not self._ended_because:
            return f"{what} The kernel does that when the machine's memory is full."
        return what + (f" Its last log line: {self.log[-1]}" if self.log else "")

    def _failure_reason(self) -> str:
        """The label of `lensmith_engine_failures_total`."""
        if self._cause is not None and self._cause.what.startswith(MEMORY):
            return "out_of_memory"
        if self._ready_since is None:
            return "start"
        return "hang" if "health checks" in self._ended_because else "exit"

    async def _run_once(self) -> int:
        """Start the child, watch it, and give its exit code once it has ended."""
        port = free_port()
        self.key = key = secrets.token_hex(24)
        self.url = URL.build(scheme="http", host="127.0.0.1", port=port)
        self.log.clear()
        self._next_start, self._reason = 0.0, f"The {self.spec.name} engine is starting."
        self._ready_since, self._ended_because, self._cause = None, "", None
        self._started, self._startup = time.monotonic(), Startup()
        self._told = asyncio.get_running_loop().create_future()
        argv = self.spec.argv(python=sys.executable, folder=self._folder, name=self.served[0], port=port)
        argv += self._arguments
        self._process = process = await asyncio.create_subprocess_exec(
            *argv,
            env={
                **os.environ,
                "PYTHONUNBUFFERED": "1",
                **self.spec.child_environment(key),
                **self._environment,
            },
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent(os.getpid()),
        )
        logs = asyncio.create_task(self._read_log(process))
        health = asyncio.create_task(self._watch_health())
        try:
            code = await process.wait()
            # Its own children may hold the pipe, the port or the GPU.
            signal_group(process.pid, signal.SIGKILL)
            await asyncio.wait([logs], timeout=1.0)
            return code
        finally:
            self._changed(False)
            for task in (logs, health):
                task.cancel()

    async def _read_log(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        rest = b""
        while chunk := await process.stdout.read(65536):
            *lines, rest = re.split(rb"[\r\n]+", rest + chunk)
            rest = rest[-LINE_LIMIT:]
            for line in lines:
                self._log_line(line)
        self._log_line(rest)

    def _log_line(self, raw: bytes) -> None:
        line = raw[:LINE_LIMIT].decode("utf-8", "replace").strip()
        if self.key:
            line = line.replace(self.key, "<key>")
        if self._ready_since is None and self._startup.feed(line, time.monotonic() - self._started):
            self._enter_phase()
        if line and not is_noise(line):
            self.log.append(line)
            self._say(f"{self.spec.name}: {line}")
        if is_dead(line):
            # What killed it is in the lines after this one.
            asyncio.get_running_loop().call_later(LAST_WORDS_SECONDS, self._put_down, DIED, self._process)

    def _enter_phase(self) -> None:
        passed = time.monotonic() - self._started
        self._reason = f"The {self.spec.name} engine is starting: {self._startup.phase}, after {passed:.0f} s."
        self._say(f"lensmith: {self._reason}")

    def _put_down(self, because: str, process: asyncio.subprocess.Process | None = None) -> None:
        process = process or self._process
        if process is not None and process.returncode is None:
            self._ended_because = self._ended_because or because
            signal_group(process.pid, signal.SIGKILL)

    async def _watch_health(self) -> None:
        """Ask for the child's health until it ends; end it when it hangs."""
        timing, started, failures = self._timing, time.monotonic(), 0
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timing.probe_timeout)) as session:
            while True:
                if await self._healthy(session):
                    failures = 0
                    if not self.ready:
                        if self._ready_since is None:
                            if not await self._sound(session):
                                return
                            self._ready_since = time.monotonic()
                            self._tell_ready(self._ready_since - self._started)
                        self._changed(True)
                elif self._ready_since is None:
                    if time.monotonic() - started > self.spec.start_seconds:
                        self._put_down(f"was not ready after {self.spec.start_seconds:g} s and was ended")
                        return
                else:
                    failures += 1
                    if failures >= 2:  # one may be a moment's load
                        self._reason = f"The {self.spec.name} engine does not answer."
                        self._changed(False)
                    if failures >= timing.failures:
                        self._put_down(f"did not answer {failures} health checks and was ended")
                        return
                await asyncio.sleep(timing.starting if self._ready_since is None else timing.probe)

    async def _sound(self, session: aiohttp.ClientSession) -> bool:
        """Whether it answers a test picture as a working model does; ends it if it doesn't."""
        if not self.spec.planned:
            return True
        self._startup.enter("answering a test picture", time.monotonic() - self._started)
        self._enter_phase()
        try:
            self.served = await prove(
                session, self.url, self.key, self._names, self._vision, self.spec.start_seconds, self._say
            )
        except Unsound as error:
            self._cause = explain(self.log) or Cause(f"Its answer to a test picture {error}.", WRONG_ANSWER)
            self._put_down("was ended before it served")
            return False
        return True

    def _tell_ready(self, took: float) -> None:
        phases = f": {self._startup.summary(took)}" if self.spec.planned else ""
        self._say(f"lensmith: The {self.spec.name} engine is ready after {took:.1f} s{phases}.")

    async def _healthy(self, session: aiohttp.ClientSession) -> bool:
        headers = {"authorization": f"Bearer {self.key}"}
        try:
            async with session.get(self.url.with_path(self.spec.health_path), headers=headers) as answer:
                return answer.status == 200
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError):
            return False

    async def _end_child(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        signal_group(process.pid, signal.SIGTERM)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(process.wait(), self._timing.stop)
        signal_group(process.pid, signal.SIGKILL)
        await process.wait()
