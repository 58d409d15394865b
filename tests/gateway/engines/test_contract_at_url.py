"""What tests/gpu asks of an LMDeploy at a URL can be asked: here of a fake one, started by hand as an operator does."""

from __future__ import annotations

import os
import subprocess
import sys

from modelfiles.hardware.python_child import free_port
from tests.support.gateway.processes import Process
from tests.support.paths import ROOT, SUPPORT


def test_the_contract_with_an_engine_at_a_url() -> None:
    port, key = free_port(), "sk-engine"
    command = [sys.executable, "-m", "lmdeploy", "serve", "api_server", "/nowhere", "--server-port", str(port)]
    paths = f"{SUPPORT / 'gateway' / 'fake_lmdeploy'}:{ROOT}"
    with Process([*command, "--model-name", "fake", "--api-keys", key], port, PYTHONPATH=paths) as engine:
        engine.wait_until("/v1/models", 200)
        given = {"LENSMITH_GPU_ENGINE": engine.url, "LENSMITH_ENGINE_KEY": key}
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu/test_gpu_structured.py"],
            cwd=ROOT,
            env={**os.environ, **given},
            capture_output=True,
            text=True,
        )
    assert run.returncode == 0, run.stdout[-5000:]
    assert "skipped" not in run.stdout
