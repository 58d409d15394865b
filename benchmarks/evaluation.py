"""How many rows `lensmith eval` answers a second: an earlier build, this one, and an engine, in one run.

    python -m benchmarks.evaluation --shape 2B --work /tmp/bench --sides before,local,lmdeploy --before CHECKOUT

The model has the real shape and random weights: answers run to 32 tokens. A row has 8 different pictures of 640 x 480
and a short question. Each side is a process of its own; times are from when the weights are loaded, or the engine is
ready, to the last answer. "equal" is the share of answers that are the same as this build's, which says little of
random weights: they repeat one token. --shape tiny --sides local,transformers rehearses it without a GPU.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
QUESTION = "Describe each picture. What is on the table, and where is the chair?"
IMAGES, SIZE, TOKENS = 8, (640, 480), 32
BEFORE, LOCAL = "before", "local"
ANSWERS = "answers-{}.json"
STOPPING = 5.0  # seconds that a side has to stop in


def write_picture(path: Path) -> None:
    from PIL import Image

    small = Image.frombytes("RGB", (40, 30), random.Random(path.name).randbytes(40 * 30 * 3))
    small.resize(SIZE, Image.Resampling.BICUBIC).save(path, quality=85)


def write_rows(folder: Path, rows: int) -> None:
    """ShareGPT rows with their own pictures, so that no cache helps any side."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    data: list[dict[str, Any]] = []
    for row in range(rows):
        names = [f"images/{row}_{number}.jpg" for number in range(IMAGES)]
        turns = [{"from": "human", "value": "<image>" * IMAGES + QUESTION}, {"from": "gpt", "value": "a table"}]
        data.append({"conversations": turns, "images": names})
    with ProcessPoolExecutor() as pool:
        list(pool.map(write_picture, [folder / name for row in data for name in row["images"]], chunksize=16))
    (folder / "rows.json").write_text(json.dumps(data))
    columns = {"messages": "conversations", "images": "images"}
    info = {"rows": {"file_name": "rows.json", "formatting": "sharegpt", "columns": columns}}
    (folder / "dataset_info.json").write_text(json.dumps(info))


def answer(side: str, work: Path, rows: int) -> None:
    """One side, in its own process: prints its figures as the last line and leaves its answers in the work folder.

    It begins once its standard input says how many seconds it has, and stops when they are over.
    """
    import torch
    from rich.console import Console

    from finetune.data.datasets import load_rows
    from finetune.evaluation import local_model as module
    from finetune.recipe.load import make_recipe

    recipe = make_recipe(
        {
            "model_name_or_path": str(work / "model"),
            "eval_dataset": "rows",
            "dataset_dir": str(work / "data"),
            "output_dir": str(work / f"out-{side}"),
            "max_samples": rows,
            "max_new_tokens": TOKENS,
            "cutoff_len": 8192,
        }
    )
    console, began = Console(stderr=True), time.monotonic()
    (work / f"out-{side}").mkdir(exist_ok=True)
    data = load_rows("rows", recipe)
    ready: list[float] = []
    answerer: Any
    local_model: Any = module
    if side in (BEFORE, LOCAL):
        load_base = local_model.load_base

        def loaded(*arguments: Any) -> Any:
            model = load_base(*arguments)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            ready.append(time.monotonic())
            return model

        local_model.load_base = loaded
        answerer = local_model.LocalModel(recipe, data, console)
    else:
        from finetune.evaluation import engine as engine_module
        from finetune.export.merge import merge

        engine: Any = engine_module
        endpoint = engine.Endpoint

        def reached(*arguments: Any) -> Any:
            ready.append(time.monotonic())
            return endpoint(*arguments)

        engine.Endpoint = reached
        answerer = engine.EngineModel(side, recipe, data, console, merge)
    print(f"{side}: read after {time.monotonic() - began:.1f} s", flush=True)
    end = float(sys.stdin.readline()) + time.monotonic()
    asked, found, seconds = time.monotonic(), {}, math.nan
    for index, text in answerer.answer(range(rows)):
        found[index] = text
        if len(found) == 1 or len(found) % 100 == 0:
            print(f"{side}: {len(found)} answers {time.monotonic() - ready[0]:.1f} s after it was ready", flush=True)
        if time.monotonic() > end:  # answers come many at a time: this one is the first of those that came too late
            del found[index]
            break
        seconds = time.monotonic() - ready[0]
    (work / ANSWERS.format(side)).write_text(json.dumps(found))
    gib = torch.cuda.max_memory_reserved() / 2**30 if torch.cuda.is_available() else 0
    figures = {
        "side": side,
        "rows": len(found),
        "samples_per_second": round(len(found) / seconds, 2),
        "seconds": round(seconds, 1),
        "seconds_until_ready": round(ready[0] - asked, 1),
    }
    print(json.dumps(figures | ({"reserved_gib": round(gib, 1)} if side in (BEFORE, LOCAL) else {})), flush=True)


def start(side: str, given: argparse.Namespace) -> subprocess.Popen[str]:
    tree = given.before if side == BEFORE else ROOT
    rows = given.before_rows if side == BEFORE else given.rows
    command = [sys.executable, str(Path(__file__).resolve()), "--side", side, "--work", str(given.work)]
    path = os.pathsep.join([str(tree), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [*command, "--rows", str(rows)],
        env=os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def measure(process: subprocess.Popen[str], seconds: float) -> dict[str, Any] | None:
    """Lets a side begin; its figures, None if it fails or takes longer than so many seconds."""
    try:
        said, _ = process.communicate(f"{seconds - STOPPING}\n", timeout=max(1.0, seconds))
    except subprocess.TimeoutExpired:
        process.terminate()
        said, _ = process.communicate()
    print(said, flush=True)
    lines = said.strip().splitlines()
    return json.loads(lines[-1]) if lines and lines[-1].startswith("{") else None


def equal(work: Path, side: str) -> float:
    """The share of a side's answers that are this build's too."""
    one, other = (json.loads((work / ANSWERS.format(name)).read_text()) for name in (side, LOCAL))
    both = one.keys() & other.keys()
    same: int = sum(one[index] == other[index] for index in both)
    return round(same / max(1, len(both)), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="2B")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument(
        "--sides", default="local", help="of before, local, lmdeploy, transformers, vllm; in this order"
    )
    parser.add_argument("--before", type=Path, help="a checkout of the earlier build")
    parser.add_argument("--before-rows", type=int, default=48)
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=3600, help="for all sides together")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        answer(given.side, given.work, given.rows)
        return
    began = time.monotonic()
    given.work.mkdir(parents=True, exist_ok=True)
    sides = given.sides.split(",")
    if not (given.work / "data" / "rows.json").exists():
        write_rows(given.work / "data", given.rows)
    if not (given.work / "model" / "config.json").exists():
        from benchmarks.models import write_model

        write_model(given.work / "model", given.shape)
    print(f"Model and rows after {time.monotonic() - began:.1f} s.", flush=True)
    running = {side: start(side, given) for side in sides}  # they read the rows meanwhile, and load no weights
    found: list[dict[str, Any]] = []
    for side in sides:
        figures = measure(running[side], given.seconds - (time.monotonic() - began))
        found += [] if figures is None else [figures]
        if given.out:
            given.out.write_text(json.dumps(result(given, found), indent=1) + "\n")


def result(given: argparse.Namespace, sides: list[dict[str, Any]]) -> dict[str, Any]:
    import torch

    if any(side["side"] == LOCAL for side in sides):
        sides = [side if side["side"] == LOCAL else side | {"equal": equal(given.work, side["side"])} for side in sides]
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return {"card": card, "shape": given.shape, "pictures": IMAGES, "new_tokens": TOKENS, "sides": sides}


if __name__ == "__main__":
    main()
