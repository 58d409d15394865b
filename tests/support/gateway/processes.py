"""Real processes for the gateway's tests: start one, wait until it answers, read its log, end it by its pid."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from modelfiles.hardware.python_child import free_port
from tests.support.paths import ROOT, SUPPORT
from tests.support.unmeasured import COUNTING

DEADLINE = 120.0  # an engine that imports torch on a machine with other work needs most of it


def until(what: str, check: Callable[[], Any]) -> Any:
    """The first true answer of `check`, asked for again and again; fails after DEADLINE seconds."""
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        if answer := check():
            return answer
        time.sleep(0.05)
    raise AssertionError(f"{what} did not come true within {DEADLINE:g} s")


def _as_at_a_terminal(line: str) -> str:
    try:
        read = json.loads(line)
    except json.JSONDecodeError:
        return line
    if not isinstance(read, dict) or "message" not in read:
        return line
    return f"{read['source']}: {read['message']}\n{read.get('traceback', '')}"


class Process:
    """A running command at a port of this machine."""

    def __init__(self, argv: list[str], port: int, cwd: Path = ROOT, **environment: str) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self._log = tempfile.TemporaryFile()  # noqa: SIM115, closed with the process
        self.process = subprocess.Popen(
            argv, stdout=self._log, stderr=subprocess.STDOUT, cwd=cwd, env={**os.environ, **environment}
        )

    def raw_log(self) -> str:
        self._log.seek(0)
        return self._log.read().decode()

    def log(self) -> str:
        """What it wrote, with messages as a terminal shows them: `lensmith: Listening on …`."""
        return "".join(map(_as_at_a_terminal, self.raw_log().splitlines(keepends=True)))

    def get(self, path: str) -> httpx.Response | None:
        try:
            return httpx.get(self.url + path, timeout=10)
        except httpx.TransportError:
            assert self.process.poll() is None, f"the process ended: {self.log()}"
            return None

    def wait_until(self, path: str, status: int) -> httpx.Response:
        def check() -> httpx.Response | None:
            answer = self.get(path)
            return answer if answer is not None and answer.status_code == status else None

        found: httpx.Response = until(f"{path} answers {status}: {self.log()}", check)
        return found

    def metric(self, name: str, **labels: str) -> float:
        from prometheus_client.parser import text_string_to_metric_families

        for family in text_string_to_metric_families(httpx.get(self.url + "/metrics", timeout=60).text):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    return sample.value
        return 0.0

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and give the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self._log.close()


def fake_engine(*options: str, port: int = 0, **environment: str) -> Process:
    port = port or free_port()
    argv = [sys.executable, str(SUPPORT / "gateway" / "fake_engine.py"), "/nowhere", "--port", str(port), *options]
    process = Process(argv, port, **{COUNTING: "", **environment})  # it runs no code of ours
    process.wait_until("/v1/models", 200)
    return process


def lensmith_serve(*options: str, **environment: str) -> Process:
    """The `lensmith serve` command at a free port."""
    port = free_port()
    argv = [sys.executable, "-c", "import lensmith; lensmith.main()", "serve", "--port", str(port), *options]
    return Process(argv, port, **environment)
