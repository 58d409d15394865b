"""Makes a variant of examples/shapes-vl/ for pictures of Ollama's sizes: 1,024 tokens, where the base saw 36.

    python -m examples.stretch_shapes_vl --out runs/shapes-vl-1024 --minutes 1     # one GPU

Ollama (0.30 and later) enlarges every picture of a Qwen3-VL to 1,024 tokens or more, however few it had in training.
The vision tower interpolates its position embeddings to any grid, so the same weights go on being trained, on the same
pictures enlarged step by step. Nothing else changes but the limits in preprocessor_config.json.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.utils.data import DataLoader
from transformers import AttentionInterface, Qwen3VLForConditionalGeneration

from examples.make_shapes_vl import MERGE, PATCH, Conversations, equal_pictures_attention, mrope_positions, save_weights

HERE = Path(__file__).parent
TOKENS = (1024, 4096)  # the fewest and the most of an image in Ollama
PEAK_LR = 6e-4
# Until which share of the time pictures have sides of so many tokens, and how many conversations make a step.
STAGES = ((0.1, 8, 256), (0.25, 16, 128), (1.0, 32, 48))


class EnlargedPictures(Conversations):
    """Batches of conversations about one picture each, which takes cells x cells tokens whatever its size was."""

    def __init__(self, tokenizer: Tokenizer, seed: int, minutes: float):
        super().__init__(tokenizer, 0, seed)
        self.start, self.seconds = time.monotonic(), 60 * minutes

    def make_batch(self, rng: random.Random) -> dict[str, Any]:
        share = (time.monotonic() - self.start) / self.seconds
        cells, size = next(((cells, size) for until, cells, size in STAGES if share < until), STAGES[-1][1:])
        side = rng.choice((64, 64, 64, 96, 128, 192))
        image = f"<|vision_start|>{'<|image_pad|>' * cells**2}<|vision_end|>"
        rows: list[list[int]] = []
        labels: list[list[int]] = []
        pictures: list[np.ndarray] = []
        while len(rows) < size:
            ids: list[int] = []
            known: list[int] = []
            seen: list[np.ndarray] = []
            for text, learn in self.conversation(rng, side, image, seen):
                tokens = self.encode(text).ids
                ids += tokens
                known += tokens if learn else [-100] * len(tokens)
            if len(seen) == 1:  # rows of two pictures would double the padding of all others
                rows, labels, pictures = [*rows, ids], [*labels, known], [*pictures, seen[0]]
        length = max(map(len, rows))
        padded = [row + [self.pad_id] * (length - len(row)) for row in rows]
        positions = [mrope_positions(row, self.image_id, cells) for row in padded]
        return {
            "cells": cells,
            "pictures": torch.from_numpy(np.stack(pictures)),
            "input_ids": torch.tensor(padded),
            "labels": torch.tensor([row + [-100] * (length - len(row)) for row in labels]),
            "position_ids": torch.tensor(positions).transpose(0, 1),
        }


def enlarged_patches(pictures: torch.Tensor, cells: int) -> torch.Tensor:
    """[N, S, S, 3] uint8 pictures to [N * (2 * cells)**2, 1536] patches, as the processor enlarges and cuts them."""
    side = cells * MERGE * PATCH
    x = pictures.permute(0, 3, 1, 2).float()
    x = torch.nn.functional.interpolate(x, (side, side), mode="bicubic", antialias=True).round().clamp(0, 255)
    x = (x / 127.5 - 1).reshape(len(x), 3, cells, MERGE, PATCH, cells, MERGE, PATCH)
    x = x.permute(0, 2, 5, 3, 6, 1, 4, 7)  # n, row, column, in-row, in-column, channel, y, x
    return x.unsqueeze(6).expand(*x.shape[:6], 2, *x.shape[6:]).reshape(len(pictures) * (cells * MERGE) ** 2, -1)


def stretch(base: Path, minutes: float, workers: int) -> Any:
    """The base's weights after `minutes` of training on enlarged pictures."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = Qwen3VLForConditionalGeneration.from_pretrained(base, dtype=torch.float32).to(device)
    # The library calls an attention function once for all pictures only where its name has "flash" in it.
    AttentionInterface.register("flash_equal_pictures", equal_pictures_attention)
    model.model.visual.config._attn_implementation = "flash_equal_pictures"
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, betas=(0.9, 0.98), weight_decay=0.05)
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    rows = EnlargedPictures(tokenizer, seed=2, minutes=minutes)
    loader = DataLoader(rows, batch_size=None, num_workers=workers, prefetch_factor=2 if workers else None)
    rows.start = start = time.monotonic()
    conversations = skipped = 0
    losses: list[float] = []
    for step, batch in enumerate(loader):
        share = (time.monotonic() - start) / (60 * minutes)
        if share >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = PEAK_LR * min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * share))
        pictures, cells = batch.pop("pictures").to(device, non_blocking=True), batch.pop("cells")
        inputs = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
        grid = torch.tensor([[len(pictures), cells * MERGE, cells * MERGE]], device=device)
        with torch.autocast(device, torch.bfloat16):
            # Rows are padded on the right and learn only their answers: the causal mask is enough.
            loss = model(**inputs, pixel_values=enlarged_patches(pictures, cells), image_grid_thw=grid).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if torch.isfinite(norm):
            optimizer.step()
        else:
            skipped += 1
        optimizer.zero_grad(set_to_none=True)
        conversations += len(pictures)
        losses.append(loss.item())
        if step % 50 == 0:
            mean = sum(losses[-50:]) / len(losses[-50:])
            done = f"{conversations:,} conversations  {share:.0%}"
            print(f"step {step}  {cells**2} tokens  loss {mean:.4f}  {done}", flush=True)
    last = sum(losses[-50:]) / max(len(losses[-50:]), 1)
    print(f"{step} steps, {conversations:,} conversations in {minutes} minutes, {skipped} skipped; loss {last:.4f}")
    return model.cpu().eval()


def write_folder(base: Path, out: Path) -> None:
    """The base's files but its weights and its card, with the limits of Ollama's image sizes."""
    out.mkdir(parents=True, exist_ok=True)
    for file in [*sorted(base.glob("*.json")), base / "merges.txt"]:
        shutil.copyfile(file, out / file.name)
    processor = json.loads((base / "preprocessor_config.json").read_text())
    fewest, most = (tokens * (PATCH * MERGE) ** 2 for tokens in TOKENS)
    processor["size"] = {"longest_edge": most, "shortest_edge": fewest}
    (out / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, required=True, help="training time")
    parser.add_argument("--workers", type=int, default=12, help="processes that draw pictures")
    args = parser.parse_args()
    write_folder(HERE / "shapes-vl", args.out)
    save_weights(stretch(HERE / "shapes-vl", args.minutes, args.workers), args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
