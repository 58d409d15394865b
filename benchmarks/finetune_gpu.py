"""QLoRA at Qwen3-VL's real size on one GPU: Lensmith against the stock recipe, in one run.

    python -m benchmarks.finetune_gpu --shape 2B --steps 6 --work /tmp/bench [--cap-gib 14.6] [--only lensmith]

The model has the real shape and random weights; a sample has 8 different pictures of 640 x 480 and a short question and
answer, as the published T4 recipe has: fp16, NF4 double quantisation, rank 8 on all linears, batch 2 x accumulation 4,
gradient checkpointing. "stock" does what LLaMA-Factory does with peft: everything in 4 bits, the vision tower too,
`prepare_model_for_kbit_training`, logits over the whole sequence, adapters on the language model. Each side runs in its
own process. Prints peak memory as PyTorch's allocator reserves it, and samples/s over the steps after the first.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.models import SHAPES, write_model

ANSWER = "a red circle and a blue triangle near the top left of the table"
QUESTION = "Describe each picture. What is on the table, and where is the chair?"
ROWS, IMAGES, SIZE = 96, 8, (640, 480)
MAX_PIXELS, CUTOFF = 589824, 4096


def write_rows(folder: Path, rows: int, size: tuple[int, int] = SIZE) -> None:
    """ShareGPT rows with their own pictures, so that no cache helps either side."""
    from PIL import Image

    rng = random.Random(0)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    data = []
    for row in range(rows):
        names = [f"images/{row}_{k}.jpg" for k in range(IMAGES)]
        for name in names:
            small = Image.frombytes("RGB", (40, 30), rng.randbytes(40 * 30 * 3))
            small.resize(size, Image.Resampling.BICUBIC).save(folder / name, quality=85)
        turns = [{"from": "human", "value": "<image>" * IMAGES + QUESTION}, {"from": "gpt", "value": ANSWER}]
        data.append({"conversations": turns, "images": names})
    (folder / "rows.json").write_text(json.dumps(data))
    columns = {"messages": "conversations", "images": "images"}
    info = {"rows": {"file_name": "rows.json", "formatting": "sharegpt", "columns": columns}}
    (folder / "dataset_info.json").write_text(json.dumps(info))


def recipe_keys(work: Path, output: Path, steps: int) -> dict[str, Any]:
    """The recipe of the module's docstring without its dtype and dropout; a step has 8 rows."""
    return {
        "model_name_or_path": str(work / "model"),
        "dataset": "rows",
        "dataset_dir": str(work / "data"),
        "output_dir": str(output),
        "overwrite_output_dir": True,
        "quantization_bit": 4,
        "double_quantization": True,
        "lora_rank": 8,
        "lora_alpha": 16,
        "cutoff_len": CUTOFF,
        "image_max_pixels": MAX_PIXELS,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "max_steps": steps,
        "disable_gradient_checkpointing": False,
        "logging_steps": 1,
        "report_to": "none",
        "plot_loss": False,
    }


def cap_memory(gib: float | None) -> None:
    import torch

    if gib is not None and torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(gib * 2**30 / total)


def peak() -> dict[str, float]:
    import torch

    if not torch.cuda.is_available():
        return {"allocated_gib": 0.0, "reserved_gib": 0.0}
    gib = 2**30
    allocated, reserved = torch.cuda.max_memory_allocated() / gib, torch.cuda.max_memory_reserved() / gib
    return {"allocated_gib": round(allocated, 2), "reserved_gib": round(reserved, 2)}


def run_lensmith(work: Path, steps: int) -> dict[str, float]:
    from finetune.recipe.load import make_recipe
    from finetune.training.loop import train

    keys = recipe_keys(work, work / "adapter", steps)
    result = train(make_recipe(keys | {"lora_dropout": 0.1, "fp16": True}))
    return {"samples_per_second": round(result.samples_per_second, 2), **peak()}


def run_stock(work: Path, steps: int) -> dict[str, float]:
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig

    device = "cuda" if torch.cuda.is_available() else "cpu"
    half = torch.float16 if device == "cuda" else torch.float32
    processor = AutoProcessor.from_pretrained(work / "model")
    quantisation = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=half
    )
    model = AutoModelForImageTextToText.from_pretrained(
        work / "model", dtype=half, quantization_config=quantisation, device_map={"": device}
    )
    model = prepare_model_for_kbit_training(model, gradient_checkpointing_kwargs={"use_reentrant": True})
    targets = r"model\.language_model\.layers\.\d+\..*_proj"
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, lora_dropout=0.1, target_modules=targets))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-5)
    scaler = torch.amp.GradScaler(device, enabled=device == "cuda")
    rows = json.loads((work / "data" / "rows.json").read_text())
    model.train()
    began, at = 0.0, 0
    for step in range(steps):
        if step == 1:  # the first step warms up
            began = time.monotonic()
        for _ in range(4):
            batch, at = rows[at : at + 2], at + 2
            texts, images = [], []
            for row in batch:
                content = [{"type": "image"}] * IMAGES + [{"type": "text", "text": QUESTION}]
                turns = [{"role": "user", "content": content}, {"role": "assistant", "content": ANSWER}]
                texts.append(processor.apply_chat_template(turns, tokenize=False))
                images.append([Image.open(work / "data" / name) for name in row["images"]])
            inputs = processor(text=texts, images=images, padding=True, return_tensors="pt").to(device)
            labels = inputs["input_ids"].clone()
            labels[:, : -len(processor.tokenizer(ANSWER).input_ids) - 2] = -100
            with torch.autocast(device, half, enabled=device == "cuda"):
                loss = model(**inputs, labels=labels).loss / 4
            scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
    if device == "cuda":
        torch.cuda.synchronize()
    return {"samples_per_second": round((steps - 1) * 8 / (time.monotonic() - began), 2), **peak()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="2B")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--cap-gib", type=float, help="let a process take only so much of the card's memory")
    parser.add_argument("--only", choices=("lensmith", "stock"))
    parser.add_argument("--child", choices=("lensmith", "stock"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        cap_memory(args.cap_gib)
        figures = (run_lensmith if args.child == "lensmith" else run_stock)(args.work, args.steps)
        (args.work / f"{args.child}.json").write_text(json.dumps(figures))
        return
    if not (args.work / "model" / "model.safetensors").exists():
        write_model(args.work / "model", args.shape)
        write_rows(args.work / "data", ROWS)
    compared: dict[str, object] = {}
    for side in [args.only] if args.only else ["stock", "lensmith"]:
        command = [sys.executable, "-m", "benchmarks.finetune_gpu", *sys.argv[1:], "--child", side]
        (args.work / f"{side}.json").unlink(missing_ok=True)
        done = subprocess.run(command, check=False)
        result = args.work / f"{side}.json"
        compared[side] = json.loads(result.read_text()) if done.returncode == 0 else {"failed": done.returncode}
        print(side, json.dumps(compared[side]), flush=True)
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(json.dumps({"shape": args.shape, "steps": args.steps, "cap_gib": args.cap_gib, "device": device, **compared}))


if __name__ == "__main__":
    main()
