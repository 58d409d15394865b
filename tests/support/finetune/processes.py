"""Two processes of one world, as torchrun starts them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from modelfiles.hardware.python_child import free_port
from tests.support.paths import ROOT
from tests.support.unmeasured import unmeasured


def two_processes(*command: str, measured: bool = False) -> list[tuple[int, str, str]]:
    """(exit code, output, errors) of a command run twice with the environment that torchrun gives.

    If one fails or both take too long, what still runs is ended and prints where it was. measured: whether `make cov`
    counts their lines.
    """
    search = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    environment = (dict(os.environ) if measured else unmeasured()) | common | {"PYTHONPATH": search}
    running = [
        subprocess.Popen(
            [sys.executable, "-X", "faulthandler", *command], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip
    with ThreadPoolExecutor(2) as readers:
        texts = [readers.submit(process.communicate) for process in running]
        deadline = time.monotonic() + 240
        while any(process.poll() is None for process in running) and time.monotonic() < deadline:
            if any(process.poll() for process in running):
                deadline = min(deadline, time.monotonic() + 20)
            time.sleep(0.1)
        for process in running:
            if process.poll() is None:
                process.send_signal(signal.SIGABRT)
        return [(process.wait(), *text.result()) for process, text in zip(running, texts, strict=True)]
