"""Peak memory of merging an adapter into a model of Qwen3-VL-2B's shape, without a GPU.

    python -m benchmarks.merge_memory --work /tmp/bench [--shape 2B] [--rank 8] [--out results.json]

The base has random weights in bfloat16 (about 4.3 GB) and the adapter random matrices on all linears of the language
model. Merging runs in a process of its own; its peak is the most that was resident (VmHWM in /proc/self/status, which
unlike ru_maxrss does not begin with the parent's), imports of torch included. The files it reads and writes are in the
page cache, which is not its own. Needs twice the base's size on the disk.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.models import write_model
from modelfiles.folder.model_folder import ModelFolder


def write_weights(file: Path, tensors: dict[str, tuple[int, ...]], dtype: torch.dtype) -> None:
    """A safetensors file of random tensors, of which one is in memory at a time."""
    names = {torch.bfloat16: "BF16", torch.float32: "F32"}
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in tensors.items():
        size = torch.Size(shape).numel() * dtype.itemsize
        header[name] = {"dtype": names[dtype], "shape": shape, "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for shape in tensors.values():
            out.write((torch.randn(shape) * 0.02).to(dtype).view(torch.uint8).numpy().tobytes())


def write_adapter(folder: Path, base: ModelFolder, rank: int) -> int:
    """A random LoRA adapter on all linears of the language model; how many."""
    folder.mkdir(parents=True)
    tensors: dict[str, tuple[int, ...]] = {}
    for name, shape in ((name, info.shape) for name, info in base.tensors.items()):
        module = name.removesuffix("_proj.weight")
        if module != name and ".language_model.layers." in name:
            tensors[f"base_model.model.{module}_proj.lora_A.weight"] = (rank, shape[1])
            tensors[f"base_model.model.{module}_proj.lora_B.weight"] = (shape[0], rank)
    write_weights(folder / "adapter_model.safetensors", tensors, torch.float32)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return len(tensors) // 2


def peak_resident() -> int:
    """The most bytes of this process that were resident so far."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def run_merge(work: Path) -> dict[str, float]:
    """Merges in this process: seconds and its peak resident memory in GB (10^9 bytes)."""
    from finetune.export.merge import merge
    from finetune.recipe.load import make_recipe

    keys = {"model_name_or_path": "base", "adapter_name_or_path": "adapter", "export_dir": "merged"}
    imported = peak_resident()
    began = time.monotonic()
    merge(make_recipe({key: str(work / value) for key, value in keys.items()}))
    seconds = time.monotonic() - began
    return {
        "seconds": round(seconds, 1),
        "peak_rss_gb": round(peak_resident() / 1e9, 3),
        "after_imports_rss_gb": round(imported / 1e9, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--shape", default="2B")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(run_merge(args.work)))
        return
    for name in ("base", "adapter", "merged"):
        shutil.rmtree(args.work / name, ignore_errors=True)
    write_model(args.work / "base", args.shape)
    adapted = write_adapter(args.work / "adapter", ModelFolder.open(args.work / "base"), args.rank)
    command = [sys.executable, "-m", "benchmarks.merge_memory", "--work", str(args.work), "--child"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    size = (args.work / "base/model.safetensors").stat().st_size
    result = {
        "shape": args.shape, "base_gb": round(size / 1e9, 3), "adapted_weights": adapted, "rank": args.rank,
        **json.loads(done.stdout.splitlines()[-1]), "machine": platform.machine(), "torch": torch.__version__,
    }  # fmt: skip
    print(json.dumps(result, indent=2))
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
