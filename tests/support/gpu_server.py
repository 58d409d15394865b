"""The server under test: which model and engine, and how long it may take to be ready."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tests.support.gateway.processes import Process
from tests.support.paths import SHAPES_VL

MODEL = Path(os.environ.get("LENSMITH_GPU_MODEL", SHAPES_VL))
ENGINE = os.environ.get("LENSMITH_GPU_ENGINE", "lmdeploy")
AT_URL = ENGINE.startswith(("http://", "https://"))  # an engine that somebody else started, in front of which we serve
READY_SECONDS = 280.0


def wait_ready(gateway: Process) -> None:
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end:
        answer = gateway.get("/ready")
        if answer is not None and answer.status_code == 200:
            return
        time.sleep(0.5)
    raise AssertionError(f"the engine did not become ready: {gateway.log()[-3000:]}")
