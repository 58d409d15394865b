"""Training on several GPUs against one, in one run: QLoRA of the 2B shape by DDP, LoRA and full training of 8B by FSDP.

    python -m benchmarks.finetune_multi_gpu --work DIR --json RESULT.json [--gpus 2] [--only NAME...] [--tiny]

Models have Qwen3-VL's real shapes and random weights; a sample has 8 pictures of 640x480, as in
`benchmarks.finetune_gpu`. The global batch is the same with one GPU and with several, so the losses must agree
(`loss_difference`: the largest between the two curves). Peak memory is what PyTorch's allocator reserves on the fullest
GPU, samples/s are over the steps after the first. --tiny rehearses everything with a tiny model on the CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.finetune_gpu import write_rows
from benchmarks.models import write_model
from finetune.reporting.runlog import read_log

QLORA: dict[str, Any] = {"quantization_bit": 4, "lora_rank": 8, "lora_alpha": 16}
ROWS, GLOBAL_MICRO_BATCHES = 96, 4


@dataclass(frozen=True)
class Case:
    """A training: model shape, whether on all GPUs, the recipe's other keys."""

    name: str
    shape: str
    several: bool
    recipe: dict[str, Any]


FULL = {"finetuning_type": "full", "learning_rate": 1e-5, "per_device_train_batch_size": 1}
CASES = (
    Case("2b-qlora-one", "2B", False, QLORA),
    Case("2b-qlora-ddp", "2B", True, QLORA),
    Case("2b-vision-ddp", "2B", True, QLORA | {"freeze_vision_tower": False, "freeze_multi_modal_projector": False}),
    Case("8b-lora-one", "8B", False, {"lora_rank": 8}),
    Case("8b-lora-fsdp", "8B", True, {"lora_rank": 8, "fsdp": "full_shard"}),
    Case("8b-full-fsdp", "8B", True, FULL | {"fsdp": "full_shard"}),
)
PAIRS = (("2b-qlora-one", "2b-qlora-ddp"), ("8b-lora-one", "8b-lora-fsdp"))


def run(case: Case, work: Path, gpus: int, steps: int, tiny: bool) -> dict[str, Any]:
    """Trains in processes of its own; the figures, or how it failed."""
    shape = "tiny" if tiny else case.shape
    if not (work / shape / "config.json").exists():
        write_model(work / shape, shape)
    world = gpus if case.several else 1
    recipe = {
        "model_name_or_path": str(work / shape), "dataset": "rows", "dataset_dir": str(work / "data"),
        "output_dir": str(work / case.name), "overwrite_output_dir": True, "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": max(1, GLOBAL_MICRO_BATCHES // world), "max_steps": steps, "cutoff_len": 4096,
        "image_max_pixels": 589824, "group_by_length": False, "disable_gradient_checkpointing": False,
        "learning_rate": 1e-4, "logging_steps": 1, "save_steps": 10_000, "report_to": "none", "plot_loss": False,
    } | case.recipe  # fmt: skip
    path = work / f"{case.name}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)] if world > 1 else []
    command = [sys.executable, *launcher, "-m", "lensmith", "train", str(path)]
    done = subprocess.run(command, check=False, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    if done.returncode:
        return {"failed": done.returncode}
    result = json.loads((work / case.name / "train_results.json").read_text())
    losses = [record["loss"] for record in read_log(work / case.name / "trainer_log.jsonl") if "loss" in record]
    for file in (work / case.name).rglob("*.safetensors"):
        file.unlink()  # checkpoints of full training are large
    for file in (work / case.name).rglob("state.pt"):
        file.unlink()
    keys = ("processes", "samples", "samples_per_second", "first_step_seconds", "peak_memory_gib", "skipped_steps",
            "trainable_parameters", "four_bit_layers")  # fmt: skip
    return {key: result[key] for key in keys} | {"losses": losses}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--only", nargs="+", choices=[case.name for case in CASES])
    parser.add_argument("--tiny", action="store_true", help="a tiny model, on the CPU where there is no GPU")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    write_rows(args.work / "data", 24 if args.tiny else ROWS)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    figures: dict[str, Any] = {"device": device, "gpus": args.gpus, "steps": args.steps, "tiny": args.tiny}
    figures |= {"torch": torch.__version__, "cases": {}}
    for case in CASES:
        if not args.only or case.name in args.only:
            found = figures["cases"][case.name] = run(case, args.work, args.gpus, args.steps, args.tiny)
            print(case.name, json.dumps(found), flush=True)
            args.json.write_text(json.dumps(figures, indent=2) + "\n")  # what there is, if a later case ends it all
    for one, several in PAIRS:
        pair = [figures["cases"].get(name, {}) for name in (one, several)]
        if all("losses" in figure for figure in pair):
            gaps = [abs(a - b) for a, b in zip(pair[0]["losses"], pair[1]["losses"], strict=True)]
            figures["cases"][several] |= {
                "loss_difference": max(gaps),
                "speedup": round(pair[1]["samples_per_second"] / pair[0]["samples_per_second"], 2),
            }
    args.json.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
