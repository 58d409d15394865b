"""The last values of a training log, kept while its file does not change: a list of runs reads each log once."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from finetune.reporting.runlog import read_log


@dataclass(frozen=True)
class LogSummary:
    """steps: the largest step; last: the last value of each field; first_timed: the first (step, seconds) with a time;
    best_eval_loss: the lowest validation loss."""

    steps: int = 0
    last: dict[str, Any] = field(default_factory=dict)
    first_timed: tuple[int, float] | None = None
    best_eval_loss: float | None = None


def summarise(path: Path) -> LogSummary:
    """The summary of a trainer_log.jsonl; that of an empty one if there is none. Damaged lines do not count."""
    try:
        stat = path.stat()
    except OSError:
        return LogSummary()
    return _summarise(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4096)
def _summarise(path: Path, changed: int, size: int) -> LogSummary:
    lines: list[Any] = list(read_log(path))
    records = [one for one in lines if isinstance(one, dict) and isinstance(one.get("current_steps"), int)]
    last: dict[str, Any] = {}
    for record in records:
        last.update(record)
    timed = ((record["current_steps"], seconds(record.get("elapsed_time"))) for record in records)
    losses = [record["eval_loss"] for record in records if isinstance(record.get("eval_loss"), int | float)]
    return LogSummary(
        steps=max((record["current_steps"] for record in records), default=0),
        last=last,
        first_timed=next(((step, time) for step, time in timed if time is not None), None),
        best_eval_loss=min(losses, default=None),
    )


def seconds(clock: object) -> float | None:
    """A time of the log ("1:02:03") in seconds; None for anything else."""
    parts = clock.split(":") if isinstance(clock, str) else []
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        return None
    return float(sum(int(part) * 60**power for power, part in enumerate(reversed(parts))))
