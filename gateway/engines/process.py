"""Signals to all of a child process's group."""

from __future__ import annotations

import contextlib
import os


def signal_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)
