"""Servers for benchmarks: start one, wait until it answers, see what it uses, put load on it, end it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import psutil

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 300
TICKS = os.sysconf("SC_CLK_TCK")


def get(url: str, key: str | None = None, timeout: float = 5.0) -> tuple[int, str]:
    """Status and text; (0, reason) if nothing answers."""
    request = urllib.request.Request(url, headers={"authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)


class Endpoint(NamedTuple):
    """An address and the API key that it wants."""

    url: str
    key: str | None = None


class Running:
    """A server that runs already at a local URL, ready when `ready_path` answers 200, and is left running."""

    def __init__(self, url: str, ready_path: str) -> None:
        self.endpoint = Endpoint(url)
        self.started = time.monotonic()
        self._ready_path = ready_path

    @property
    def pid(self) -> int:
        """Of the process that listens there. Raises LookupError if none does."""
        port = urlsplit(self.endpoint.url).port
        for one in psutil.net_connections(kind="tcp"):
            if one.pid and one.status == psutil.CONN_LISTEN and getattr(one.laddr, "port", 0) == port:
                return int(one.pid)
        raise LookupError(f"nothing listens at {self.endpoint.url}")

    def wait_ready(self) -> float:
        """Seconds until the first 200. Raises RuntimeError if there is none."""
        while get(self.endpoint.url + self._ready_path)[0] != 200:
            if time.monotonic() - self.started > START_SECONDS:
                raise RuntimeError(f"nothing is ready at {self.endpoint.url}")
            time.sleep(0.25)
        return time.monotonic() - self.started

    def end(self) -> None:
        """Leaves it as it is."""


class Server(Running):
    """A command at a port, in a session of its own, ready when `ready_path` answers 200. Logs to `log`."""

    def __init__(self, argv: list[str], port: int, ready_path: str, log: Path, **environment: str) -> None:
        super().__init__(f"http://127.0.0.1:{port}", ready_path)
        self.log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                argv, stdout=file, stderr=file, cwd=ROOT, env={**os.environ, **environment}, start_new_session=True
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_ready(self) -> float:
        """Seconds from the start to the first 200. Raises RuntimeError with the log's end if there is none."""
        while get(self.endpoint.url + self._ready_path)[0] != 200:
            if self.process.poll() is not None or time.monotonic() - self.started > START_SECONDS:
                self.end()
                raise RuntimeError(f"{self.log} ends with:\n" + "\n".join(self.log.read_text().splitlines()[-15:]))
            time.sleep(0.25)
        return time.monotonic() - self.started

    def end(self) -> None:
        """SIGTERM, and after a while SIGKILL for whatever is left of its session."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(20)
        for pid in session(self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def session(leader: int) -> list[int]:
    """The processes of the session that `leader` began."""
    return [pid for pid in pids() if (stat := read_stat(pid)) and int(stat[3]) == leader]


def pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def read_stat(pid: int, task: str = "") -> list[str] | None:
    """The fields of /proc/PID/stat after the command's name: state, parent, group, session, ... (man 5 proc)."""
    try:
        return Path(f"/proc/{pid}{task}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def descendants(pid: int) -> list[int]:
    """`pid` and all its children's children."""
    parents = {child: int(stat[1]) for child in pids() if (stat := read_stat(child))}
    found = [pid]
    for parent in found:
        found += [child for child, of in parents.items() if of == parent]
    return found


def command_line(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]
    except OSError:
        return []


def environment(pid: int) -> dict[str, str]:
    return dict(line.partition("=")[::2] for line in Path(f"/proc/{pid}/environ").read_text().split("\0") if line)


class Engine(NamedTuple):
    """An engine that a running `lensmith serve` started, to be asked past the gateway."""

    pid: int
    endpoint: Endpoint
    command: list[str]


def engines_behind(gateway: Running) -> list[Engine]:
    """The engines of a gateway in the order of their pids. Raises RuntimeError if it has none."""
    found: dict[str, Engine] = {}
    for pid in sorted(descendants(gateway.pid)):
        argv = command_line(pid)
        if "api_server" in argv or "gateway.embedded" in argv:
            port = argv[argv.index("--server-port" if "api_server" in argv else "--port") + 1]
            key = environment(pid).get("LENSMITH_ENGINE_KEY")
            found.setdefault(port, Engine(pid, Endpoint(f"http://127.0.0.1:{port}", key), argv))
    if not found:
        raise RuntimeError("the gateway has no engine among its processes")
    return list(found.values())


class Usage:
    """CPU per thread of a process tree and, where nvidia-smi is, the GPU's use, over a `with` block.

    `threads`: the busiest as (process, thread, share of a core); `gpu`: mean percentage of time with a kernel running.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.threads: list[tuple[str, str, float]] = []
        self.cores = 0.0
        self.gpu: float | None = None
        self._samples: list[float] = []
        self._done = threading.Event()

    def __enter__(self) -> Usage:
        self._before, self._began = self._read(), time.monotonic()
        self._thread = threading.Thread(target=self._sample_gpu, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        seconds, after = time.monotonic() - self._began, self._read()
        self._done.set()
        self._thread.join()
        shares = {task: (ticks - self._before.get(task, 0)) / TICKS / seconds for task, ticks in after.items()}
        self.cores = round(sum(shares.values()), 2)
        busiest = sorted(shares.items(), key=lambda item: -item[1])[:12]
        self.threads = [(process, thread, round(share, 2)) for (process, thread, _), share in busiest if share > 0.01]
        self.gpu = round(sum(self._samples) / len(self._samples), 1) if self._samples else None

    def _read(self) -> dict[tuple[str, str, str], int]:
        ticks = {}
        for pid in descendants(self.pid):
            name = f"{pid} " + " ".join(part for part in command_line(pid)[1:5] if not part.startswith("/"))
            try:
                tasks = [entry.name for entry in Path(f"/proc/{pid}/task").iterdir()]
            except OSError:
                continue
            for task in tasks:
                stat = read_stat(pid, f"/task/{task}")
                if stat:
                    thread = Path(f"/proc/{pid}/task/{task}/comm").read_text().strip()
                    ticks[name[:60], thread, task] = int(stat[11]) + int(stat[12])
        return ticks

    def _sample_gpu(self) -> None:
        query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        while not self._done.wait(0.25):
            try:
                answer = subprocess.run(query, capture_output=True, text=True, timeout=5).stdout.split()
                self._samples.append(float(answer[0]))
            except (OSError, ValueError, IndexError, subprocess.TimeoutExpired):
                return

    def fields(self) -> dict[str, Any]:
        return {"cores": self.cores, "gpu_percent": self.gpu, "threads": self.threads}


def start_load(endpoint: Endpoint, report: Path, *options: str) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "lensmith", "bench", endpoint.url, "--json", str(report), *options]
    report.unlink(missing_ok=True)
    variables = {**os.environ, **({"LENSMITH_API_KEY": endpoint.key} if endpoint.key else {})}
    return subprocess.Popen(argv, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=variables)


def read_load(process: subprocess.Popen[str], report: Path) -> list[dict[str, Any]]:
    """The levels of a run of `start_load`. Raises RuntimeError if it failed."""
    said = process.communicate()[1]
    if process.returncode or not report.exists():
        raise RuntimeError(f"lensmith bench: {said.strip()[-500:]}")
    levels: list[dict[str, Any]] = json.loads(report.read_text())["levels"]
    return levels


def load(endpoint: Endpoint, *options: str) -> list[dict[str, Any]]:
    """`lensmith bench` with these options: its levels."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        return read_load(start_load(endpoint, report, *options), report)


def versions() -> dict[str, str]:
    """What the figures depend on."""
    from importlib import metadata

    found = {"python": sys.version.split()[0], "cores": str(os.cpu_count())}
    for package in ("torch", "transformers", "lmdeploy", "triton"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    try:
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        found["gpu"] = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.strip()
    except OSError:
        pass
    return found
