"""Signals to all of a child process's group."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time

POLL_SECONDS = 0.02


def signal_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)


async def end_group(pid: int, seconds: float) -> None:
    """SIGTERM to what is left of a group whose first process has ended, SIGKILL to what is left after `seconds`.

    Python's resource tracker is in the group of an engine with several processes. It ends by itself when the others
    have, and unlinks the shared memory that they left; killed at once it would leave that in /dev/shm for ever.
    """
    signal_group(pid, signal.SIGTERM)
    end = time.monotonic() + seconds
    while _exists(pid) and time.monotonic() < end:  # noqa: ASYNC110, nothing tells that a group is empty
        await asyncio.sleep(POLL_SECONDS)
    signal_group(pid, signal.SIGKILL)


def _exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
