"""How long `lensmith check` takes over many rows, and what it holds in memory.

    python -m benchmarks.finetune_rows OUT.json --rows 250000 500000 1000000 2000000

Each number of rows is checked twice: first with an empty cache, then with the rows in it. Rows are question, answer and
one of 200 small images, all texts different; the model is the repository's own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

MODEL = Path(__file__).parent.parent / "examples" / "shapes-vl"
WORDS = ["red", "green", "blue", "square", "circle", "left", "right", "above", "large", "small", "what", "is", "near"]


def write_rows(folder: Path, count: int) -> Path:
    """A data file of so many rows beside their images."""
    chance = random.Random(0)
    (folder / "images").mkdir()
    for number in range(200):
        size = chance.randrange(64, 320), chance.randrange(64, 320)
        Image.new("RGB", size, (number, 255 - number, 7)).save(folder / f"images/{number}.jpg")
    path = folder / "rows.jsonl"
    with path.open("w") as file:
        for number in range(count):
            question, answer = (" ".join(chance.choices(WORDS, k=k)) for k in (12, 8))
            turns = [{"from": "human", "value": f"<image>{question} {number}?"}, {"from": "gpt", "value": answer}]
            file.write(json.dumps({"conversations": turns, "images": [f"images/{number % 200}.jpg"]}) + "\n")
    return path


def check(path: Path, cache: Path) -> dict[str, Any]:
    """Seconds, CPU seconds and the peak memory of the largest process of one check."""
    command = [sys.executable, "-c", MEASURED, str(path)]
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"XDG_CACHE_HOME": str(cache), "MODEL": str(MODEL), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    peak = int(done.stdout.rsplit(maxsplit=1)[-1])
    return {
        "seconds": round(time.monotonic() - began, 1),
        "cpu_seconds": round(cpu, 1),
        "peak_gib": round(peak / 2**20, 2),
    }


# The largest of the process and those that it started.
MEASURED = """
import os, resource, sys
from rich.console import Console
from finetune.preflight.check import check_recipe
from finetune.preflight.report import Report
from finetune.recipe.load import make_recipe
if __name__ == "__main__":
    keys = {"model_name_or_path": os.environ["MODEL"], "dataset": sys.argv[1], "output_dir": "unused"}
    assert check_recipe(make_recipe(keys), Report(Console(quiet=True)))
    print(max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[250_000, 500_000, 1_000_000, 2_000_000])
    arguments = parser.parse_args()
    results = []
    for count in arguments.rows:
        with tempfile.TemporaryDirectory() as folder:
            path = write_rows(Path(folder), count)
            result = {"rows": count} | {name: check(path, Path(folder) / "cache") for name in ("first", "again")}
        results.append(result)
        print(json.dumps(result), flush=True)
        facts = {"cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0]}
        arguments.out.write_text(json.dumps(facts | {"results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
