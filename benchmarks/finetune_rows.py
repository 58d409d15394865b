"""What many rows cost `lensmith check` and the start of `lensmith train`: time, and memory of the largest process.

    python -m benchmarks.finetune_rows OUT.json --rows 250000 500000 1000000 2000000
    python -m benchmarks.finetune_rows OUT.json --against CHECKOUT --rows 100000 200000 --rounds 3

Rows are a question, an answer and one of 200 small images, all texts different; the model is the repository's own. Each
number of rows is checked with an empty cache, then with the rows in it, and one step is trained on them.

With `--against`, check runs here and in another checkout in turns, so that a busy machine disturbs both alike, each
time with an empty cache; the ratio is the median of each round's. OUT.json keeps the results of the other of these two
uses.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image

HERE = Path(__file__).parent.parent
MODEL = HERE / "examples" / "shapes-vl"
WORDS = ["red", "green", "blue", "square", "circle", "left", "right", "above", "large", "small", "what", "is", "near"]
FIGURES = {"first": "check", "again": "check", "train": "train"}
PACKAGES = ("pyarrow", "tokenizers", "torch", "transformers")


def write_rows(folder: Path, count: int) -> None:
    """rows.jsonl of so many rows beside their images, and a recipe for it."""
    chance = random.Random(0)
    (folder / "images").mkdir()
    for number in range(200):
        size = chance.randrange(64, 320), chance.randrange(64, 320)
        Image.new("RGB", size, (number, 255 - number, 7)).save(folder / f"images/{number}.jpg")
    with (folder / "rows.jsonl").open("w") as file:
        for number in range(count):
            question, answer = (" ".join(chance.choices(WORDS, k=k)) for k in (12, 8))
            turns = [{"from": "human", "value": f"<image>{question} {number}?"}, {"from": "gpt", "value": answer}]
            file.write(json.dumps({"conversations": turns, "images": [f"images/{number % 200}.jpg"]}) + "\n")
    keys = {"model_name_or_path": str(MODEL), "dataset": "rows.jsonl", "output_dir": "run", "max_steps": 1}
    (folder / "recipe.yaml").write_text(json.dumps(keys))


def measure(command: str, folder: Path, checkout: Path = HERE) -> dict[str, float]:
    """Seconds, CPU seconds and the peak memory of the largest process of `lensmith COMMAND` on the folder's rows."""
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache"), "PYTHONPATH": str(checkout)}
    environment |= {"OMP_NUM_THREADS": "1"}
    shutil.rmtree(folder / "run", ignore_errors=True)
    began = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, "-c", "import lensmith; lensmith.main()", command, "recipe.yaml"],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    _, status, used = os.wait4(child.pid, 0)  # its own and its processes'
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"lensmith {command} of {checkout} ended with {child.returncode}.")
    return {
        "seconds": round(time.monotonic() - began, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_gib": round(used.ru_maxrss / 2**20, 2),
    }


def measure_growth(count: int, figures: list[str]) -> dict[str, Any]:
    """The figures of one number of rows."""
    with tempfile.TemporaryDirectory() as name:
        write_rows(Path(name), count)
        return {"rows": count} | {figure: measure(FIGURES[figure], Path(name)) for figure in figures}


def compare(count: int, rounds: int, other: Path) -> dict[str, Any]:
    """The figures of each round in both checkouts, and how many times the rows a second this one checks."""
    found: dict[str, list[dict[str, float]]] = {"before": [], "now": []}
    with tempfile.TemporaryDirectory() as name:
        write_rows(Path(name), count)
        for _ in range(rounds):
            for side, checkout in (("before", other), ("now", HERE)):
                shutil.rmtree(Path(name) / "cache", ignore_errors=True)
                found[side].append(measure("check", Path(name), checkout))
                print(side, found[side][-1], flush=True)
    times = {
        figure: round(median(b[figure] / n[figure] for b, n in zip(*found.values(), strict=True)), 2)
        for figure in ("seconds", "cpu_seconds")
    }
    rates = {side: round(count / median(row["seconds"] for row in rows)) for side, rows in found.items()}
    return {"rows": count, "rows_per_second": rates, "times_faster": times, "rounds": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[250_000, 500_000, 1_000_000, 2_000_000])
    parser.add_argument("--figures", nargs="+", default=list(FIGURES), choices=FIGURES, help="of each number of rows")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another checkout, to be compared with")
    parser.add_argument("--rounds", type=int, default=3, help="of a comparison")
    arguments = parser.parse_args()
    results = []
    for count in arguments.rows:
        if arguments.against:
            results.append(compare(count, arguments.rounds, arguments.against.resolve()))
        else:
            results.append(measure_growth(count, arguments.figures))
        print(json.dumps(results[-1]), flush=True)
        kept = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
        machine = {"cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0]}
        packages = {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}
        figures = {"environment": machine | packages, "results": results}
        kept["against" if arguments.against else "growth"] = figures
        arguments.out.write_text(json.dumps(kept, indent=2) + "\n")


if __name__ == "__main__":
    main()
