"""Speed and memory of training steps on one GPU, by the ways in which Lensmith can run them.

    python -m benchmarks.training_steps --work DIR --json RESULT.json [--shape 2B] [--sides NAME...] [--seconds 90]

QLoRA as `benchmarks.finetune_gpu` describes it: 8 pictures of 640 x 480 a row, 2 rows at once, 4 times a step, NF4
doubly quantised, rank 8, gradient checkpointing. Sides: steps in CUDA graphs whose layers' inputs wait in host memory,
which is what training does; the same with the inputs on the GPU, with dropout, and with the allocator's expandable
segments; and steps by the models' own modules. Each side is a process with a time limit and is printed and written as
soon as it has ended; one that fails or is out of time has the figures of the steps that it made, and the next one runs
all the same. Reserved memory is PyTorch's peak up to the last step, beside what was estimated. With --shape tiny
everything runs on a CPU.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.finetune_gpu import SIZE, recipe_keys, write_rows
from benchmarks.models import SHAPES, write_model

GIB = 2**30
WARM, SAMPLES = 3, 8  # steps that are not timed; rows of a step


@dataclass(frozen=True)
class Side:
    """keys: of the recipe; patched: of passes.graphs, what is something else meanwhile; environment: variables."""

    keys: dict[str, Any]
    patched: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)


ON_GPU = {"_host_memory": lambda *given: None}
MODULES = {"why_modules": lambda *given: "this side is by modules"}
SIDES = {
    "fp16": Side({"fp16": True}),
    "bf16": Side({"bf16": True}),
    "fp16, inputs on the GPU": Side({"fp16": True}, ON_GPU),
    "fp16, dropout": Side({"fp16": True, "lora_dropout": 0.1}),
    "fp16, expandable segments": Side(
        {"fp16": True}, environment={"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    ),
    "fp16, modules": Side({"fp16": True}, MODULES),
}


def child(side: Side, work: Path, steps: int, result: Path) -> None:
    """Trains; writes what is known of the steps after each of them."""
    import torch
    from rich.console import Console

    from finetune.memory.cards import Card, this_card
    from finetune.memory.estimate import estimate
    from finetune.memory.heaviest_load import heaviest_load
    from finetune.memory.layered import why_modules
    from finetune.recipe.load import make_recipe
    from finetune.training.dataset import load_training_data
    from finetune.training.loop import train
    from finetune.training.trainer import Trainer

    gpu = torch.cuda.is_available()
    keys = {key: value for key, value in side.keys.items() if gpu or key not in ("fp16", "bf16")}
    own = {"resume_from_checkpoint": False, "save_steps": 10000, "max_new_tokens": 2}
    recipe = make_recipe(recipe_keys(work, work / "adapter", steps) | own | keys)
    data = load_training_data(recipe, Console(quiet=True))
    load = heaviest_load(data.rows, recipe, data.bank)  # type: ignore[arg-type]
    layered = side.patched is not MODULES and not why_modules(recipe, data.folder.model_type)
    host = 0 if side.patched is ON_GPU else math.inf
    found = estimate(data.folder, recipe, load, this_card() or Card("CPU", 1.0, (8, 0)), 0, layered, host)
    figures: dict[str, Any] = {"estimated_gib": round(found.reserved / GIB, 2), "losses": []}
    del data
    began, plain, ends = time.monotonic(), Trainer.step, []

    def step(self: Trainer, *args: Any) -> Any:
        made = plain(self, *args)
        ends.append(time.monotonic())
        figures["losses"].append(round(made[0], 4))
        figures["first_step_seconds"] = round(ends[0] - began, 1)
        if gpu:
            figures["reserved_gib"] = round(torch.cuda.max_memory_reserved() / GIB, 2)
            figures["allocated_gib"] = round(torch.cuda.max_memory_allocated() / GIB, 2)
        if len(ends) > WARM:
            seconds = (ends[-1] - ends[WARM - 1]) / (len(ends) - WARM)
            figures["samples_per_second"] = round(SAMPLES / seconds, 3)
            figures["seconds_to_100_steps"] = round(ends[-1] - began + (100 - len(ends)) * seconds, 1)
        figures["timed_steps"] = max(0, len(ends) - WARM)
        result.write_text(json.dumps(figures))
        return made

    with patch.object(Trainer, "step", step), patch.object(Trainer, "samples", lambda self: []):
        train(recipe, Console(stderr=True))


def measured(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """A side's figures, from a process of its own."""
    result = args.work / "side.json"
    result.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.training_steps", *sys.argv[1:], "--child", name]
    environment = os.environ | SIDES[name].environment
    log = args.work / f"{name.replace(', ', '-').replace(' ', '_')}.log"
    with log.open("w") as said:
        try:
            code = subprocess.run(
                command, env=environment, stdout=said, stderr=said, timeout=args.seconds, check=False
            ).returncode
            failed = f"exit code {code}: {log.read_text()[-400:]}" if code else ""
        except subprocess.TimeoutExpired:
            failed = f"not ended after {args.seconds} s"
    figures = json.loads(result.read_text()) if result.exists() else {}
    return {"side": name, **figures} | ({"failed": failed} if failed else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--shape", choices=SHAPES, default="2B")
    parser.add_argument("--sides", nargs="*", choices=SIDES, default=list(SIDES))
    parser.add_argument("--steps", type=int, default=11)
    parser.add_argument("--seconds", type=float, default=90, help="of each side at most")
    parser.add_argument("--child", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        side = SIDES[args.child]
        with patch.multiple("finetune.training.passes.graphs", **side.patched) if side.patched else nullcontext():
            child(side, args.work, args.steps, args.work / "side.json")
        return
    if not (args.work / "model" / "model.safetensors").exists():
        write_model(args.work / "model", args.shape)
        write_rows(args.work / "data", SAMPLES * args.steps, (96, 64) if args.shape == "tiny" else SIZE)
    rows: list[dict[str, Any]] = []
    for name in args.sides:
        rows.append(measured(name, args))
        print(json.dumps(rows[-1]), flush=True)
        args.json.write_text(json.dumps({"shape": args.shape, "steps": args.steps, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
