"""One process of an engine, from its start to its exit code: its log, its phases of starting, why it ended."""

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
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path

from yarl import URL

from gateway.engines.process import end_group, signal_group
from gateway.engines.spec import EngineSpec
from gateway.engines.startup.log import MEMORY, Cause, Startup
from gateway.telemetry.logs import engine_log
from modelfiles.hardware.python_child import die_with_parent, free_port

LOG_LINES = 200
LINE_LIMIT = 2000  # bytes
CAUSE_SECONDS = 60.0  # before the end of an engine that served; what failed earlier was a request, and not the engine
GROUP_SECONDS = 2.0  # from the end of the process to SIGKILL for what it started
EXIT_SECONDS = 0.3  # from a connection that broke to the end of the process, if that was why
TRACEBACK_SECONDS = 0.5  # from the line after which an engine answers nothing more to the end of its traceback
DIED = "stopped working and was ended"
DYING_SECONDS = 5.0  # from the same line to the end of the process, which holds much memory
FAILURE_LABELS = ("exit", "hang", "out_of_memory", "start")


class EngineChild:
    """A process of its own group, with a key and a loopback port of its own. Must be made in a running event loop.

    `on_phase` is called whenever a new phase of its start begins.
    """

    def __init__(self, spec: EngineSpec, on_phase: Callable[[], None]) -> None:
        self.key = secrets.token_hex(24)
        self.url = URL.build(scheme="http", host="127.0.0.1", port=free_port())
        self.startup = Startup(spec.log)
        self.ready_since: float | None = None  # on the monotonic clock
        self.cause: Cause | None = None  # why it failed, once that is known
        self.exit_reason: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._spec = spec
        self._on_phase = on_phase
        self._started = time.monotonic()
        self._log: deque[tuple[float, str]] = deque(maxlen=LOG_LINES)  # each with the engine's age
        self._dying = False  # its log says that it answers nothing more
        self._kill_reason = ""
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    @property
    def age(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self._started

    async def run(
        self,
        folder: Path,
        model: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        watch: Coroutine[None, None, None],
    ) -> int:
        """Start it and give its exit code once it has ended; `watch` runs meanwhile."""
        argv = self._spec.argv(python=sys.executable, folder=folder, name=model, port=self.url.port or 0)
        child_environment = {"PYTHONUNBUFFERED": "1", **self._spec.child_environment(self.key), **environment}
        watching = asyncio.create_task(watch)
        try:
            self._process = process = await asyncio.create_subprocess_exec(
                *argv,
                *arguments,
                env={**os.environ, **child_environment},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent(os.getpid()),
            )
            logs = asyncio.create_task(self._read_log(process))
            try:
                code = await process.wait()
                # Its own children may still have the pipe, the port or the GPU open.
                await end_group(process.pid, GROUP_SECONDS)
                await asyncio.wait([logs], timeout=1.0)
                return code
            finally:
                logs.cancel()
        finally:
            watching.cancel()

    def kill(self, reason: str) -> None:
        """End it at once; the first reason given is the one that is reported."""
        if self._process is not None and self._process.returncode is None:
            self._kill_reason = self._kill_reason or reason
            self._process.kill()

    async def terminate(self, seconds: float) -> None:
        """SIGTERM to its group, SIGKILL to itself after `seconds`, then the end of what is left of the group."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        signal_group(process.pid, signal.SIGTERM)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(process.wait(), seconds)
        if process.returncode is None:
            process.kill()
            await process.wait()
        await end_group(process.pid, GROUP_SECONDS)

    async def wait_for_exit_reason(self) -> str:
        """Why it ended, in sentences; empty if it is still running after EXIT_SECONDS, and not about to be ended."""
        if self._process is None:
            return ""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._process.wait(), EXIT_SECONDS)
        if self._process.returncode is None and self._dying:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._process.wait(), DYING_SECONDS)
        if self._process.returncode is not None:
            await asyncio.wait([self.exit_reason], timeout=GROUP_SECONDS + 2.0)
        return self.exit_reason.result() if self.exit_reason.done() else ""

    def describe_exit(self, code: int) -> str:
        """Why it ended with this exit code, in sentences."""
        self.find_cause()
        how = f"exited with code {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"
        if self.ready_since is None and self._spec.planned:
            how += f" while {self.startup.phase}"
        what = f"The {self._spec.name} engine {self._kill_reason or how}."
        if self.cause is not None:
            return f"{what} {self.cause}"
        if code == -signal.SIGKILL and not self._kill_reason:
            return f"{what} The kernel does that when the machine's memory is full."
        return what + (f" Its last log line: {self._log[-1][1]}" if self._log else "")

    def find_cause(self) -> Cause | None:
        """The cause that its log shows, unless one is known already."""
        since = 0.0 if self.ready_since is None else self.age - CAUSE_SECONDS
        lines = [line for age, line in self._log if age >= since]
        self.cause = self.cause or self._spec.log.explain_exit(lines)
        return self.cause

    @property
    def failure_label(self) -> str:
        """The `reason` of `lensmith_engine_failures_total`, one of FAILURE_LABELS."""
        if self.cause is not None and self.cause.what.startswith(MEMORY):
            return "out_of_memory"
        if self.ready_since is None:
            return "start"
        return "hang" if "health checks" in self._kill_reason else "exit"

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
        line = raw[:LINE_LIMIT].decode("utf-8", "replace").strip().replace(self.key, "<key>")
        if self.ready_since is None and self.startup.feed(line, self.age):
            self._on_phase()
        if line and not self._spec.log.is_noise(line):
            self._log.append((self.age, line))
            engine_log(self._spec.name).info("%s", line)
        if self._spec.log.is_dead(line):
            self._dying = True
            # What killed it is in the lines after this one.
            asyncio.get_running_loop().call_later(TRACEBACK_SECONDS, self.kill, DIED)
