"""Why a run is not running: a plain sentence, what to do, and the last lines of its output."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass, field

from studio.runs.run import Run

LAST_LINES = 12
_COLOUR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_ERROR = re.compile(r"^Error: (.+)")  # how the command line says a FinetuneError
_EXCEPTION = re.compile(r"^((?:\w+\.)*\w*(?:Error|Exception|Interrupt)): (.+)")

# What the output shows -> the key of the sentence. The first that matches anywhere in the last lines counts.
CAUSES: tuple[tuple[str, str], ...] = (
    (r"No space left on device|could not be written: .*Errno 28", "disk_full"),
    (r"The GPU is out of memory", "own_words"),
    (r"CUDA out of memory|OutOfMemoryError|CUDA error: out of memory", "gpu_memory"),
    (r"DefaultCPUAllocator: can't allocate memory|\bMemoryError\b", "memory"),
    (r"No module named '(?P<what>[\w.]+)'", "module"),
    (r"NVIDIA driver on your system is too old|no kernel image is available", "driver"),
    (r"NCCL|ProcessGroup|torch\.distributed", "processes"),
)


@dataclass(frozen=True)
class Ending:
    """key: of the texts runs.end_KEY and runs.fix_KEY; values: their placeholders; lines: the last of the output."""

    key: str
    values: dict[str, str] = field(default_factory=dict)
    lines: tuple[str, ...] = ()


def ending_of(run: Run) -> Ending | None:
    """How a run ended; None while it runs or waits."""
    job = run.job
    if run.active:
        return None
    if job is None:
        return Ending("done" if run.state == "done" else "unknown", {"steps": str(run.steps)})
    figures = {"steps": str(run.steps), "total": str(run.total_steps or "?")}
    if job.state in ("done", "stopped"):
        return Ending(job.state if job.state == "done" or run.steps else "stopped_early", figures)
    lines = last_lines(job.tail()[0])
    if job.state == "lost":
        return Ending("lost", figures, lines)
    if job.reason == "hung":
        return Ending("hung", figures | {"minutes": f"{(job.spec.silence or 0) / 60:.0f}"}, lines)
    if job.reason:
        return Ending("not_started", figures, lines)
    return _failure(lines, job.exit_code, job.signal, figures)


def _failure(lines: tuple[str, ...], code: int | None, number: int | None, figures: dict[str, str]) -> Ending:
    text = "\n".join(lines)
    said = [found[1] for line in lines if (found := _ERROR.match(line))]
    for pattern, key in CAUSES:
        found = re.search(pattern, text)
        if found is not None and key != "own_words":
            return Ending(key, figures | found.groupdict(), lines)
        if found is not None:
            break
    if said:  # a sentence of Lensmith's own says what to do
        return Ending("error", figures | {"message": _whole(lines)}, lines)
    if number == signal.SIGKILL:
        return Ending("killed", figures, lines)
    if number is not None:
        return Ending("signal", figures | {"signal": signal.Signals(number).name}, lines)
    thrown = [line for line in lines if _EXCEPTION.match(line)]
    if thrown:
        return Ending("exception", figures | {"message": thrown[-1][:500]}, lines)
    return Ending("exit_code", figures | {"code": str(code)}, lines)


def _whole(lines: tuple[str, ...]) -> str:
    """From the last "Error: " on: a message may have several lines."""
    begin = max(index for index, line in enumerate(lines) if _ERROR.match(line))
    return " ".join(lines[begin:]).removeprefix("Error: ")[:1000]


def last_lines(text: str) -> tuple[str, ...]:
    """The last lines of an output as a terminal would show them: without colours, of a moving line its end only."""
    lines = [_COLOUR.sub("", line).rpartition("\r")[2].rstrip() for line in text.replace("\r\n", "\n").split("\n")]
    return tuple(line for line in lines if line)[-LAST_LINES:]
