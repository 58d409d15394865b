"""Processes by an identity that outlives their pid: a pid is given again, its start time since boot is not."""

from __future__ import annotations

import contextlib
import ctypes
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PR_SET_CHILD_SUBREAPER = 36  # <sys/prctl.h>
_libc = ctypes.CDLL(None)


@dataclass(frozen=True)
class ProcessId:
    """pid; started: clock ticks since boot (/proc/PID/stat, field 22); boot: the kernel's id of this boot."""

    pid: int
    started: int
    boot: str

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """The process that has this pid now; None if there is none, or one that has ended and waits for its parent."""
        fields = _stat(pid)
        if fields is None or fields[0] in "ZX":
            return None
        return cls(pid, int(fields[19]), _boot())

    @classmethod
    def from_plain(cls, values: dict[str, Any] | None) -> ProcessId | None:
        return cls(**values) if values else None

    def as_plain(self) -> dict[str, Any]:
        return asdict(self)

    def alive(self) -> bool:
        return ProcessId.of(self.pid) == self

    def signal_group(self, number: int) -> None:
        """Send a signal to the process group that this process leads, if a process of the group is there."""
        if self.group_alive():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    def group_alive(self) -> bool:
        """Whether a process of the group that this process leads is running, be it this one or a child of it."""
        if self.boot != _boot():
            return False
        now = ProcessId.of(self.pid)
        if now is not None and now != self:
            return False  # the pid was given again, which the kernel does only when the group is empty
        return any(int(fields[2]) == self.pid and fields[0] not in "ZX" for _, fields in _all())


def descendants(pid: int) -> list[int]:
    """The pids of all processes below this one."""
    children: dict[int, list[int]] = {}
    for child, fields in _all():
        if fields[0] not in "ZX":
            children.setdefault(int(fields[1]), []).append(child)
    found, queue = [], [pid]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def adopt_orphans() -> None:
    """Make this process the parent of processes below it whose own parent ends."""
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1)


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the command's name: state, parent, group …"""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()


def _all() -> list[tuple[int, list[str]]]:
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return [(pid, fields) for pid in pids if (fields := _stat(pid)) is not None]


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
