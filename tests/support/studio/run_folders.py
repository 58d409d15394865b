"""Run folders as training leaves them, without a training."""

from __future__ import annotations

import json
import math
import sys
import zipfile
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from modelfiles.folder.safetensors_writer import TensorSource, write_safetensors
from studio.jobs.job import Job
from studio.jobs.spec import JobSpec
from studio.jobs.store import Jobs
from studio.workspace.folder import Workspace


def record(step: int, total: int, **fields: Any) -> str:
    """A line of trainer_log.jsonl."""
    values = {
        "current_steps": step,
        "total_steps": total,
        "loss": round(2.2 * math.exp(-step / 40) + 0.2 + 0.05 * math.sin(step), 4),
        "lr": 1e-4 * (1 - step / (total + 1)),
        "grad_norm": 1.5,
        "throughput": 812.5 + step % 7,
        "elapsed_time": f"0:{step // 60:02}:{step % 60:02}",
    }
    return json.dumps(values | fields) + "\n"


def make_run(workspace: Workspace, name: str, steps: int = 60, total: int = 100, **keys: Any) -> Path:
    """A run of so many logged steps, with recipe, validation and sample answers; no checkpoint."""
    folder = workspace.create("runs", name)
    recipe = {"model_name_or_path": "models/base", "dataset": "shapes", "learning_rate": 1e-4, "lora_rank": 8} | keys
    recipe["output_dir"] = str(folder / "output")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    output = folder / "output"
    output.mkdir()
    lines = [record(step, total) for step in range(2, steps + 1, 2)]
    for step in range(20, steps + 1, 20):
        loss = round(2 * math.exp(-step / 40) + 0.3, 4)
        lines.append(json.dumps({"current_steps": step, "total_steps": total, "eval_loss": loss}) + "\n")
    (output / "trainer_log.jsonl").write_text("".join(lines))
    images = []
    for number, colour in enumerate(("#c33", "#36c")):
        images.append(output / f"shape{number}.png")
        Image.new("RGB", (96, 96), colour).save(images[-1])
    with (output / "sample_answers.jsonl").open("w") as file:
        for step in range(0, steps + 1, 20):
            answers = []
            for path, label, learnt in zip(images, ("red", "blue"), (20, 40), strict=True):
                answer = label if step >= learnt else "yes"
                answers.append(
                    {"images": [str(path)], "question": "What colour is it?", "label": label, "answer": answer}
                )
            file.write(json.dumps({"step": step, "answers": answers}) + "\n")
    return folder


def add_checkpoint(folder: Path, step: int) -> Path:
    """A checkpoint that looks whole."""
    checkpoint = folder / "output" / f"checkpoint-{step}"
    checkpoint.mkdir()
    with zipfile.ZipFile(checkpoint / "state.pt", "w") as archive:
        archive.writestr("state/data.pkl", b"x")
    write_safetensors(checkpoint / "adapter_model.safetensors", {"a": TensorSource("F32", (2,), None)})
    return checkpoint


def train_job(jobs: Jobs, folder: Path, code: str, *arguments: str, **fields: Any) -> Job:
    """A job of this run that runs Python code instead of a training."""
    command = [sys.executable, "-c", code, *arguments]
    name = folder.name
    values = {"kind": "train", "title": name, "command": command, "cwd": folder, "about": {"run": name}}
    return jobs.submit(JobSpec(**values | {"exclusive": f"run/{name}"} | fields))
