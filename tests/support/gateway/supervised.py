"""A gateway that supervises the fake engine as its child."""

from __future__ import annotations

import json
import sys

import psutil

from modelfiles.hardware.python_child import free_port
from tests.support.gateway.processes import Process, until
from tests.support.paths import ROOT, SUPPORT

QUICK = {"starting": 0.05, "probe": 0.1, "probe_timeout": 0.5, "failures": 4, "first_delay": 0.4}


def serve_fake(*options: str, **timing: float) -> Process:
    port = free_port()
    argv = [
        sys.executable,
        str(SUPPORT / "gateway" / "serve_fake.py"),
        str(port),
        json.dumps({**QUICK, **timing}),
        *options,
    ]
    return Process(argv, port, PYTHONPATH=str(ROOT))


def child(gateway: Process) -> psutil.Process:
    """The engine process, as soon as there is one that lives."""

    def living() -> list[psutil.Process]:
        found = psutil.Process(gateway.process.pid).children()
        return [process for process in found if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]

    processes: list[psutil.Process] = until("a child", living)
    return processes[0]
