"""Signals to all of a child process's group."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Iterator
from glob import iglob
from pathlib import Path

POLL_SECONDS = 0.02
TRACKER_SECONDS = 1.0  # that Python's resource tracker needs after the last process of its engine
TRACKER = b"multiprocessing.resource_tracker"


def signal_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)


async def end_group(pid: int, seconds: float) -> None:
    """SIGTERM to what is left of a group whose first process has ended, SIGKILL to what is left after `seconds`.

    Python's resource tracker is in the group of an engine with several processes. It ends by itself when the others
    have, and unlinks the shared memory that they left; killed with them it would leave that in /dev/shm for ever.
    """
    signal_group(pid, signal.SIGTERM)
    await _wait_until_empty(pid, seconds)
    for member in _members(pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(member, signal.SIGKILL)
    await _wait_until_empty(pid, TRACKER_SECONDS)
    signal_group(pid, signal.SIGKILL)


def _members(group: int) -> Iterator[int]:
    """The processes of a group without resource trackers; none where there is no /proc."""
    for folder in iglob("/proc/[0-9]*"):
        with contextlib.suppress(OSError):
            # Behind the name, which may hold anything: state, parent, group.
            fields = Path(folder, "stat").read_bytes().rpartition(b")")[2].split()
            if int(fields[2]) == group and TRACKER not in Path(folder, "cmdline").read_bytes():
                yield int(Path(folder).name)


async def _wait_until_empty(group: int, seconds: float) -> None:
    end = time.monotonic() + seconds
    while _exists(group) and time.monotonic() < end:  # noqa: ASYNC110, nothing tells that a group is empty
        await asyncio.sleep(POLL_SECONDS)


def _exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
