"""Runs several recipes one after the other in a process of a world that the environment describes, as torchrun does.

    python train_jobs.py JOBS.json    # [{"recipe": path, "stop_after": step or null}, ...]

`stop_after`: the last process sends itself SIGTERM once that step is in the log. Writes JOBS.json.RANK: each job's
result, or the error that ended it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch.distributed as dist

from finetune.errors import FinetuneError
from finetune.recipe.load import load_recipe
from finetune.reporting.runlog import read_log
from finetune.training.loop import train
from modelfiles.hardware.python_child import free_port


def stop_after(folder: Path, step: int) -> None:
    while not any(record["current_steps"] >= step for record in read_log(folder / "trainer_log.jsonl")):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)


def meet(file: Path, rank: int) -> str:
    """A port for the next world, free a moment ago: the first process picks it, the others read it from `file`.

    A new world must not meet the one before, and a port that was picked minutes ago may be another test's by now.
    """
    if rank == 0:
        draft = file.with_suffix(".draft")
        draft.write_text(str(free_port()))
        draft.rename(file)
    while not file.exists():
        time.sleep(0.01)
    return file.read_text()


def main() -> None:
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    results: list[dict[str, Any]] = []
    for number, job in enumerate(json.loads(Path(sys.argv[1]).read_text())):
        recipe = load_recipe(job["recipe"])
        os.environ["MASTER_PORT"] = meet(Path(f"{sys.argv[1]}.port-{number}"), rank)
        if job["stop_after"] and rank == world - 1:
            arguments = (Path(str(recipe.output_dir)), job["stop_after"])
            threading.Thread(target=stop_after, args=arguments, daemon=True).start()
        try:
            results.append(asdict(train(recipe)))
        except FinetuneError as error:
            results.append({"error": error.message})
            dist.destroy_process_group()  # the other process waits until this one has gone
        except SystemExit:  # the first process has the error
            results.append({"error": None})
            dist.destroy_process_group()
    Path(f"{sys.argv[1]}.{rank}").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
