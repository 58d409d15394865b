"""What training chooses by itself on one GPU, and what it gains: rows at once, packing, features that are kept; and the
memory of preferences beside its estimate.

    python -m benchmarks.training_choices --work DIR --json RESULT.json [--shape 2B] [--only PART...] [--seconds 45]

Models have the real shape and random weights; QLoRA, rank 8. `short` rows are questions and answers of 20 to 300 words,
every second with a picture of 256 x 256; `padded`, `packed`, `auto` and `auto_packed` train them in steps of 32 rows,
by fours where `auto` does not choose. `kept` and `disk` train rows with four pictures of 640 x 480 for three epochs,
with features in memory and in a file; samples/s are by epoch, without the first two steps. `pairs` measures the peak of
stage: dpo. Each part has a time limit; of one that reaches it, the steps that were made are reported, and the next part
runs all the same. With --shape tiny everything runs on a CPU in a minute.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import math
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from PIL import Image
from rich.console import Console

from benchmarks.finetune_memory import WORDS
from benchmarks.models import SHAPES, write_model
from finetune.memory.cards import Card, this_card
from finetune.memory.estimate import estimate
from finetune.memory.heaviest_load import heaviest_load
from finetune.recipe.load import make_recipe
from finetune.recipe.schema import Recipe
from finetune.training.dataset import load_training_data
from finetune.training.loop import train
from finetune.training.trainer import Trainer

GIB = 2**30
STEP_ROWS = 32
UNCOUNTED = 2  # steps at the start, in which kernels are made and memory is taken


def words(rng: random.Random, count: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(count))


def picture(rng: random.Random, path: Path, size: tuple[int, int]) -> None:
    small = Image.frombytes("RGB", (40, 30), rng.randbytes(40 * 30 * 3))
    small.resize(size, Image.Resampling.BICUBIC).save(path, quality=85)


def write_rows(work: Path, tiny: bool) -> None:
    """short.json, pictures.json and pairs.json, with their images."""
    rng = random.Random(0)
    shutil.rmtree(work / "data", ignore_errors=True)
    (work / "data" / "images").mkdir(parents=True)
    longest, small, large = (40, (64, 64), (64, 64)) if tiny else (300, (256, 256), (640, 480))
    short, pictures, pairs = [], [], []
    for row in range(6 * STEP_ROWS if not tiny else 2 * STEP_ROWS):
        name = f"images/short{row}.jpg"
        picture(rng, work / "data" / name, small)
        said = "<image>" * (row % 2) + words(rng, rng.randint(5, longest // 2))
        answer = words(rng, rng.randint(5, longest // 2))
        short.append({"conversations": turns(said, answer), "images": [name] * (row % 2)})
    for row in range(24 if not tiny else 8):
        names = [f"images/many{row}_{number}.jpg" for number in range(4)]
        for name in names:
            picture(rng, work / "data" / name, large)
        pictures.append({"conversations": turns("<image>" * 4 + "What is there?", words(rng, 12)), "images": names})
        asked, chosen = turns("<image>" * 4 + "What is there?", words(rng, 60))
        rejected = {"from": "gpt", "value": words(rng, 60)}
        pairs.append({"conversations": [asked], "chosen": chosen, "rejected": rejected, "images": names})
    rows = {"short": short, "pictures": pictures, "pairs": pairs}
    for name, data in rows.items():
        (work / "data" / f"{name}.json").write_text(json.dumps(data))
    info = {name: {"file_name": f"{name}.json", "formatting": "sharegpt", "ranking": name == "pairs"} for name in rows}
    (work / "data" / "dataset_info.json").write_text(json.dumps(info))


def turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def recipe_of(work: Path, name: str, **keys: Any) -> Recipe:
    base: dict[str, Any] = {
        "model_name_or_path": str(work / "model"), "dataset_dir": str(work / "data"), "cutoff_len": 4096,
        "output_dir": str(work / name), "overwrite_output_dir": True, "resume_from_checkpoint": False,
        "quantization_bit": 4, "lora_rank": 8, "image_max_pixels": 589824, "learning_rate": 1e-5, "logging_steps": 1,
        "save_steps": 10000, "report_to": "none", "plot_loss": False, "max_new_tokens": 2,
    }  # fmt: skip
    return make_recipe(base | keys)


@contextmanager
def timed_steps() -> Iterator[list[float]]:
    """When each optimiser step ended."""
    plain, ends = Trainer.step, []

    def step(self: Trainer, *args: Any) -> Any:
        result = plain(self, *args)
        ends.append(time.monotonic())
        return result

    Trainer.step = step  # type: ignore[method-assign, assignment]
    try:
        yield ends
    finally:
        Trainer.step = plain  # type: ignore[method-assign]


def trained(recipe: Recipe) -> tuple[dict[str, Any], list[float]]:
    """What a run says of itself, and when its steps ended."""
    said = io.StringIO()
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with timed_steps() as ends:
        try:
            result = train(recipe, Console(file=said, width=500))
        except TimeoutError:
            return {"unfinished": f"{len(ends)} steps"}, ends
    chosen = [line for line in said.getvalue().splitlines() if "at once" in line or line.startswith("Steps run")]
    figures = {"loss": round(result.loss, 4), "first_step_seconds": round(result.first_step_seconds, 1)}
    return figures | {"chosen": chosen, "peak_gib": result.peak_memory_gib}, ends


def short(work: Path, name: str, **keys: Any) -> dict[str, Any]:
    """Samples/s of rows of many lengths."""
    rows = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": STEP_ROWS // 4}
    figures, ends = trained(recipe_of(work, name, dataset="short", **rows | {"num_train_epochs": 1} | keys))
    seconds = (ends[-1] - ends[UNCOUNTED - 1]) if len(ends) > UNCOUNTED else math.nan
    return figures | {"samples_per_second": round(max(0, len(ends) - UNCOUNTED) * STEP_ROWS / seconds, 2)}


def epochs(work: Path, name: str, small_memory: bool) -> dict[str, Any]:
    """Samples/s by epoch where images are used again."""
    rows = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    recipe = recipe_of(work, name, dataset="pictures", num_train_epochs=3, **rows)
    with patch.object(os, "sysconf", lambda name: 1) if small_memory else nullcontext():
        figures, ends = trained(recipe)
    each = len(json.loads((work / "data" / "pictures.json").read_text())) // 4
    speeds = []
    for first in range(0, len(ends), each):  # the last epoch may be cut short
        start = max(first, UNCOUNTED) - 1
        epoch = ends[start : first + each] or ends[-1:]
        speeds.append(4 * (len(epoch) - 1) / max(1e-9, epoch[-1] - epoch[0]))
    return figures | {"samples_per_second_by_epoch": [round(speed, 2) for speed in speeds]}


def pairs(work: Path) -> dict[str, Any]:
    """The peak of one pair a batch, and its estimate."""
    keys: dict[str, Any] = {"stage": "dpo", "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    keys |= {"max_steps": 4, "disable_gradient_checkpointing": False}
    recipe = recipe_of(work, "pairs", dataset="pairs", **keys)
    data = load_training_data(recipe, Console(quiet=True))
    load = heaviest_load(data.rows, recipe, data.bank)  # type: ignore[arg-type]
    found = estimate(data.folder, recipe, load, this_card() or Card("CPU", 1.0, (8, 0)))
    figures, _ = trained(recipe)
    parts = {name: round(size / GIB, 3) for name, size in (found.model_states | found.moments).items()}
    return figures | {"estimated_gib": round(found.reserved / GIB, 3), "load": vars(load), "parts_gib": parts}


AUTO = {"per_device_train_batch_size": "auto", "gradient_accumulation_steps": STEP_ROWS}
PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "kept": lambda work: epochs(work, "kept", False),
    "pairs": pairs,
    "auto": lambda work: short(work, "auto", **AUTO),
    "packed": lambda work: short(work, "packed", group_by_length=False, packing=True),
    "padded": lambda work: short(work, "padded", group_by_length=False),
    "auto_packed": lambda work: short(work, "auto_packed", **AUTO, packing=True),
    "disk": lambda work: epochs(work, "disk", True),
}


def out_of_time(number: int, frame: Any) -> None:
    raise TimeoutError("out of its time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--shape", choices=SHAPES, default="2B")
    parser.add_argument("--only", nargs="*", choices=PARTS)
    parser.add_argument("--seconds", type=int, default=90, help="of each part at most")
    args = parser.parse_args()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    results: dict[str, Any] = {"shape": args.shape, "device": device, "torch": torch.__version__}
    if not (args.work / "model" / "model.safetensors").exists():
        write_model(args.work / "model", args.shape)
    write_rows(args.work, args.shape == "tiny")
    signal.signal(signal.SIGALRM, out_of_time)
    for name in args.only or PARTS:
        began = time.monotonic()
        signal.alarm(args.seconds)
        try:
            results[name] = PARTS[name](args.work)
        except Exception as error:  # the next part is measured all the same
            results[name] = {"failed": f"{type(error).__name__}: {str(error)[:500]}"}
        finally:
            signal.alarm(0)
        results[name]["seconds"] = round(time.monotonic() - began, 1)
        print(name, json.dumps(results[name]), flush=True)
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
