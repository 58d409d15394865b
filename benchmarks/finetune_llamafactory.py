"""Lensmith beside LLaMA-Factory on a CPU: time to the first step, samples/s, and the losses of the first steps.

    python -m examples.easy_vqa DATA
    python -m benchmarks.finetune_llamafactory --llamafactory VENV/bin/python --data DATA --work DIR [--rounds 3]

VENV has llamafactory 0.9.5 and torch; nothing is installed here. Both sides train the same base on the same rows with
the settings of examples/recipes/easy_vqa_train.yaml, each run in a process of its own, in turns. Times are taken from
outside: from the start of the process to its first line in trainer_log.jsonl, and between its lines.

Losses are compared from the same adapter over the same batches. What LLaMA-Factory does otherwise is made the same and
told here: it quantises the vision tower too (so the comparison is without quantisation), it computes in the weights'
bfloat16 even on a CPU (the compared base is in float32), and its adapter would start from other random numbers (it
loads the one that Lensmith starts from).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

BATCH = 32
RECIPE: dict[str, Any] = {
    "model_name_or_path": "examples/shapes-vl",
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "lora",
    "lora_target": "all",
    "lora_rank": 16,
    "lora_alpha": 32,
    "dataset": "easy_vqa_train",
    "template": "qwen3_vl_nothink",
    "cutoff_len": 512,
    "per_device_train_batch_size": BATCH,
    "gradient_accumulation_steps": 1,
    "learning_rate": 2.0e-3,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.05,
    "logging_steps": 1,
    "save_steps": 100_000,
    "seed": 42,
    "report_to": "none",
    "plot_loss": False,
    "overwrite_output_dir": True,
    "disable_gradient_checkpointing": True,
}
QUANTISED = {"quantization_bit": 4, "double_quantization": True}
THEIRS = "from llamafactory.cli import main; main()"  # its command line
START = """
import sys, torch
from pathlib import Path
from finetune.model.base import load_base
from finetune.model.folder import open_base
from finetune.model.targets import make_trainable
from finetune.model.trained import save_trained, trained_state
from finetune.recipe.load import load_recipe
recipe = load_recipe(sys.argv[1])
model = make_trainable(load_base(open_base(recipe), recipe, torch.device("cpu"), torch.float32), recipe)
Path(sys.argv[2]).mkdir(parents=True, exist_ok=True)
save_trained(model, trained_state(model), Path(sys.argv[2]))
"""


def float32_base(folder: Path) -> Path:
    """A copy of the base with weights in float32."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(RECIPE["model_name_or_path"], folder, dirs_exist_ok=True)
    weights = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = (folder / "config.json").read_text().replace("bfloat16", "float32")
    (folder / "config.json").write_text(config)
    return folder


def run(command: list[str], output: Path, steps: int) -> dict[str, Any]:
    """Runs a training and watches its log: seconds to the first step, samples/s after it, CPU seconds, losses."""
    shutil.rmtree(output, ignore_errors=True)
    log = output / "trainer_log.jsonl"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    seen: list[float] = []
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "DISABLE_VERSION_CHECK": "1"}
    with (output.parent / f"{output.name}.txt").open("w") as text:
        process = subprocess.Popen(command, stdout=text, stderr=subprocess.STDOUT, env=environment)
        while process.poll() is None:
            lines = log.read_text().count("\n") if log.exists() else 0
            seen += [time.monotonic() - began] * (min(lines, steps) - len(seen))
            time.sleep(0.01)
    if process.returncode:
        sys.exit(f"{' '.join(command[:3])} ... failed; see {text.name}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    losses = [json.loads(line) for line in log.read_text().splitlines()]
    return {
        "first_step_s": round(seen[0], 2),
        "samples_per_s": round(BATCH * (len(seen) - 1) / (seen[-1] - seen[0]), 1),
        "cpu_s": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "losses": [record["loss"] for record in losses if "loss" in record][:steps],
    }


def write(path: Path, recipe: dict[str, Any]) -> Path:
    path.write_text(json.dumps(recipe, indent=1))  # JSON is YAML
    return path


def sides(args: argparse.Namespace, name: str, keys: dict[str, Any], theirs: dict[str, Any]) -> Any:
    """One run of each side with the same recipe: {"lensmith": figures, "llamafactory": figures}."""
    found = {}
    for side in ("llamafactory", "lensmith"):
        output = args.work / f"{name}-{side}"
        recipe = RECIPE | {"dataset_dir": str(args.data), "output_dir": str(output), "max_steps": args.steps} | keys
        recipe |= {"max_samples": args.rows}
        if side == "lensmith":
            path = write(args.work / f"{name}-{side}.yaml", recipe | {"group_by_length": False})
            command = [sys.executable, "-m", "lensmith", "train", str(path)]
        else:
            path = write(args.work / f"{name}-{side}.yaml", recipe | theirs)
            command = [args.llamafactory, "-c", THEIRS, "train", str(path)]
        found[side] = run(command, output, args.steps)
        figures = {key: value for key, value in found[side].items() if key != "losses"}
        print(f"{name:10} {side:13} {json.dumps(figures)}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llamafactory", required=True, help="a Python with llamafactory 0.9.5")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=6400)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    args.data = args.data.resolve()

    speeds = [sides(args, f"speed-{n}", QUANTISED, {"quantization_method": "bnb"}) for n in range(args.rounds)]

    start = args.work / "start"
    base = {"model_name_or_path": str(float32_base(args.work / "base"))}
    plain = RECIPE | base | {"dataset_dir": str(args.data), "output_dir": str(start)}
    made = [sys.executable, "-c", START, str(write(args.work / "start.yaml", plain)), str(start)]
    subprocess.run(made, check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    curves = sides(args, "losses", base, {"adapter_name_or_path": str(start)})
    pairs = list(zip(curves["lensmith"]["losses"], curves["llamafactory"]["losses"], strict=False))[:50]
    apart = [abs(one - other) for one, other in pairs]

    ratios = {
        key: [round(one["lensmith"][key] / one["llamafactory"][key], 2) for one in speeds]
        for key in ("first_step_s", "samples_per_s", "cpu_s")
    }
    environment = {"cpu_cores": os.cpu_count(), "python": platform.python_version(), "machine": platform.machine()}
    summary = {
        "environment": environment,
        "rounds": [{side: {k: v for k, v in one[side].items() if k != "losses"} for side in one} for one in speeds],
        "lensmith over llamafactory": ratios,
        "compared steps": len(apart),
        "losses apart at most": round(max(apart), 6),
        "losses": {side: [round(loss, 5) for loss in curves[side]["losses"][:50]] for side in curves},
    }
    args.work.joinpath("result.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps({key: value for key, value in summary.items() if key != "losses"}, indent=1))


if __name__ == "__main__":
    main()
