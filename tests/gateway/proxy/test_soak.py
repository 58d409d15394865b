"""The soak of `benchmarks/gateway/soak.py`, for a moment."""

from __future__ import annotations

import subprocess
import sys

from tests.support.paths import ROOT


def test_clients_that_go_leave_nothing_behind() -> None:
    argv = [sys.executable, "-m", "benchmarks.gateway.soak", "--seconds", "5", "--clients", "24"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "'gone': " in done.stdout
