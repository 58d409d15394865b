"""QLoRA at Qwen3-VL's real size by Lensmith, Unsloth, TRL and LLaMA-Factory, on one GPU in one run.

    python -m benchmarks.training_vs_peers --work DIR --json FILE
        [--path unsloth=SITE] [--path llamafactory=SITE] [--path before=CHECKOUT] [--sides lensmith:fp16 ...]

A side is a tool and a compute dtype. `--path` is put on a tool's PYTHONPATH: a folder filled by `pip install --target`
(call it site-packages: elsewhere dill takes modules for a script's own and pickles them whole), or another checkout of
Lensmith for `before`. All train the same folder (the real shape, random weights) on the same rows: 8 pictures of
640 x 480 and a short question and answer, NF4 doubly quantised, rank 8 on the language model's linears, no dropout,
micro-batches of 2 x 4, gradient checkpointing, loss on the answer alone.

Each side is started and warmed up alone, and then waits, with its memory; when all are warm they take turns. So nothing
else runs while one is timed, but all have to fit on the card together. `samples_per_second` is the median of the turns,
`seconds_to_100_steps` is counted from the start of the process. FILE is written after every turn. What is not warm
within `--seconds` is left out and named. With --shape tiny pictures are small, and all but Unsloth run on a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import queue
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks.finetune_gpu import IMAGES, MAX_PIXELS, SIZE, write_rows
from benchmarks.models import SHAPES, write_model
from benchmarks.training_vs_peers.meter import SAMPLES, Meter
from benchmarks.training_vs_peers.tools import TOOLS, Task

SIDES = [
    "unsloth:fp16",
    "lensmith:fp16",
    "lensmith:bf16",
    "unsloth:bf16",
    "before:fp16",
    "llamafactory:fp16",
    "trl:fp16",
]
ENVIRONMENT = {
    "PYTHONUNBUFFERED": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "WANDB_DISABLED": "true",
    "DISABLE_VERSION_CHECK": "1",  # LLaMA-Factory's pins
    "UNSLOTH_DISABLE_STATISTICS": "1",
}
# The benchmark's modules come from this checkout, all others by PYTHONPATH: `before` has packages of the same names.
START = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from benchmarks.training_vs_peers.__main__ import main
del sys.path[0]
main()
"""


class Side:
    """One tool's training in a process group of its own, which stops at the end of each turn."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        self.tool, self.dtype = name.split(":")
        self.name = name
        self.turns: list[float] = []  # samples/s of each
        self.last: dict[str, Any] = {}  # the last report
        self.warm_seconds = 0.0
        self.log = args.work / f"{self.tool}_{self.dtype}.log"
        reports, reports_there = os.pipe()
        permissions_there, permissions = os.pipe()
        command = [sys.executable, "-c", START, str(Path.cwd()), "--work", str(args.work), "--child", name]
        command += ["--descriptors", str(reports_there), str(permissions_there)]
        command += ["--warm", str(args.warm), "--turns", str(args.turns), "--turn", str(args.turn)]
        own = [path for tool, path in args.path if tool == self.tool]
        path = [*own, *os.environ.get("PYTHONPATH", "").split(os.pathsep), str(Path.cwd())]
        environment = os.environ | ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(filter(None, path))}
        environment |= {"STARTED": str(time.time()), "PYTHONSAFEPATH": "1"}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment,
                start_new_session=True, pass_fds=(reports_there, permissions_there),
            )  # fmt: skip
        os.close(reports_there)
        os.close(permissions_there)
        self.permissions = os.fdopen(permissions, "wb", buffering=0)
        self.reports: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=self._read, args=(reports,), daemon=True).start()

    def _read(self, reports: int) -> None:
        with os.fdopen(reports, "rb") as lines:
            for line in lines:
                self.reports.put(json.loads(line))
        self.reports.put(None)

    def wait(self, until: float) -> str | None:
        """Takes the next report, at most until the monotonic second. Returns what went wrong, or None."""
        try:
            report = self.reports.get(timeout=max(0.1, until - time.monotonic()))
        except queue.Empty:
            return "not warm in time" if not self.last else "the time was over"
        if report is None:
            lines = self.log.read_text(errors="replace").splitlines()
            return f"ended with code {self.process.wait()}: {' | '.join(lines[-3:])[-600:]}"
        self.last = report
        if report["what"] == "turn":
            self.turns.append(SAMPLES * report["steps"] / report["seconds"])
        return None

    def give_turn(self) -> None:
        self.permissions.write(b"+")

    def end(self) -> None:
        """Ends the group: data loaders and compilers too."""
        self.permissions.close()
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def row(self, warm: int) -> dict[str, Any]:
        """One row of the result."""
        speed = median(self.turns)
        left = {key: value for key, value in self.last.items() if key not in ("what", "steps", "seconds")}
        return {
            "side": self.tool,
            "dtype": self.dtype,
            "samples_per_second": round(speed, 3),
            "turns": [round(turn, 3) for turn in self.turns],
            "seconds_to_100_steps": round(self.warm_seconds + (100 - warm) * SAMPLES / speed, 1),
            **left,
        }


class Failure(NamedTuple):
    side: str
    why: str


def compare(args: argparse.Namespace) -> None:
    began = time.monotonic()
    until = began + args.seconds
    sides: list[Side] = []
    failures: list[Failure] = []

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began:.0f} s] {text}", flush=True)

    def leave_out(name: str, why: str) -> None:
        failures.append(Failure(name, why))
        say(f"{name}: {why}")

    try:
        for name in args.sides:
            if time.monotonic() > until - args.reserve:
                leave_out(name, "no time was left to start it")
                continue
            side = Side(name, args)
            why = side.wait(until - args.reserve)
            if why is not None:
                side.end()
                leave_out(name, why)
                continue
            side.warm_seconds = side.last["warm_seconds"]
            say(f"{name}: warm, reserved {side.last.get('reserved_gib')} GiB")
            sides.append(side)
        for turn in range(args.turns):
            for side in list(sides):
                side.give_turn()
                why = side.wait(until)
                if why is not None:
                    sides.remove(side)
                    side.end()
                    leave_out(side.name, why)
                else:
                    say(f"{side.name}: turn {turn + 1}, {side.turns[-1]:.2f} samples/s")
                write(args, [side for side in sides if side.turns], failures)
    finally:
        for side in sides:
            side.end()
    write(args, sides, failures)


def write(args: argparse.Namespace, sides: list[Side], failures: list[Failure]) -> None:
    import torch

    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    versions = {package: version(package) for package in ("torch", "transformers", "peft", "bitsandbytes")}
    result = {
        "card": card,
        "host": f"{os.cpu_count()} cores, Python {platform.python_version()}, {versions}",
        "task": f"{args.shape} shape, {IMAGES} pictures a row, {args.warm} steps before the first turn, "
        f"{args.turns} turns of {args.turn - 1} counted steps",
        "rows": [side.row(args.warm) for side in sides],
        "left_out": [failure._asdict() for failure in failures],
    }
    args.json.write_text(json.dumps(result, indent=1) + "\n")


def child(args: argparse.Namespace) -> None:
    tool, dtype = args.child.split(":")
    reports, permissions = (
        os.fdopen(number, mode) for number, mode in zip(args.descriptors, ("wb", "rb"), strict=True)
    )
    meter = Meter(args.warm, args.turn, float(os.environ["STARTED"]), reports, permissions)
    TOOLS[tool](Task(args.work, dtype, args.warm + args.turns * args.turn + 1, meter))


def pair(text: str) -> tuple[str, str]:
    tool, equals, path = text.partition("=")
    if not equals or tool not in TOOLS:
        raise argparse.ArgumentTypeError(f"{text!r} is not TOOL=FOLDER; tools are {', '.join(TOOLS)}")
    return tool, str(Path(path).resolve())


def side_name(text: str) -> str:
    tool, _, dtype = text.partition(":")
    if tool not in TOOLS or dtype not in ("fp16", "bf16"):
        raise argparse.ArgumentTypeError(f"{text!r} is not TOOL:fp16 or TOOL:bf16; tools are {', '.join(TOOLS)}")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=lambda path: Path(path).resolve(), required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="2B")
    parser.add_argument("--sides", nargs="+", type=side_name, default=SIDES)
    parser.add_argument("--path", action="append", type=pair, default=[], metavar="TOOL=FOLDER")
    parser.add_argument("--warm", type=int, default=3)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--turn", type=int, default=5, help="steps of a turn, the first of which is not counted")
    parser.add_argument("--seconds", type=float, default=900)
    parser.add_argument("--reserve", type=float, default=90, help="seconds of them that are kept for the turns")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--descriptors", nargs=2, type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args)
        return
    if args.json is None:
        parser.error("--json is missing")
    if not (args.work / "model" / "model.safetensors").exists():
        write_model(args.work / "model", args.shape, max_pixels=MAX_PIXELS)
        rows = SAMPLES * (args.warm + args.turns * args.turn + 1)
        write_rows(args.work / "data", rows, (128, 96) if args.shape == "tiny" else SIZE)
    compare(args)


if __name__ == "__main__":
    main()
