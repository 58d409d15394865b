"""Makes examples/shapes-vl/: a small Qwen3-VL base model, pre-trained on pictures we generate.

    python -m examples.make_shapes_vl --out examples/shapes-vl --minutes 6     # one GPU; a CPU works, slowly

The folder has the files, configuration keys and tensor names of Qwen/Qwen3-VL-2B-Instruct, in small.
Training is plain next-token prediction on the answers of generated conversations (examples/shapes.py).
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch.utils.data import DataLoader, IterableDataset
from transformers import AttentionInterface, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from examples import shapes

HERE = Path(__file__).parent
VOCABULARY = 2048
PEAK_LR = 1e-3
PATCH, MERGE = 16, 2
# Qwen2's split expression, as in its tokenizer.json; servers recognise the pre-tokenizer by it.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The added tokens of Qwen3-VL's tokenizer in their order; the second column: special (hidden when decoding).
ADDED_TOKENS = (
    ("<|endoftext|>", True),
    ("<|im_start|>", True),
    ("<|im_end|>", True),
    ("<|object_ref_start|>", True),
    ("<|object_ref_end|>", True),
    ("<|box_start|>", True),
    ("<|box_end|>", True),
    ("<|quad_start|>", True),
    ("<|quad_end|>", True),
    ("<|vision_start|>", True),
    ("<|vision_end|>", True),
    ("<|vision_pad|>", True),
    ("<|image_pad|>", True),
    ("<|video_pad|>", True),
    ("<tool_call>", False),
    ("</tool_call>", False),
    ("<|fim_prefix|>", False),
    ("<|fim_middle|>", False),
    ("<|fim_suffix|>", False),
    ("<|fim_pad|>", False),
    ("<|repo_name|>", False),
    ("<|file_sep|>", False),
    ("<tool_response>", False),
    ("</tool_response>", False),
    ("<think>", False),
    ("</think>", False),
)


def build_tokenizer() -> Tokenizer:
    """A byte-level BPE of Qwen2's kind, learnt from our captions and the licence's English."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(SPLIT), "isolated"), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    rng = random.Random(0)
    turns = [shapes.picture_turn(shapes.sample_scene(rng, 3), rng) for _ in range(4000)]
    turns += [shapes.echo_turn(rng) for _ in range(2000)]
    text = ["\n".join(turn) for turn in turns] + list(shapes.PAIR_PROMPTS) + list(shapes.SYSTEM_PROMPTS)
    text += [" ".join(shapes.COMMON_WORDS)] * 20
    text += (HERE.parent / "LICENSE").read_text().splitlines() * 3
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(ADDED_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text, trainer)
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=special) for token, special in ADDED_TOKENS])
    return tokenizer


def model_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """config.json with the keys of Qwen3-VL-2B-Instruct's."""
    token_id = tokenizer.token_to_id
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "image_token_id": token_id("<|image_pad|>"),
        "model_type": "qwen3_vl",
        "text_config": {
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": token_id("<|endoftext|>"),
            "dtype": "bfloat16",
            "eos_token_id": token_id("<|im_end|>"),
            "head_dim": 64,
            "hidden_act": "silu",
            "hidden_size": 256,
            "initializer_range": 0.02,
            "intermediate_size": 512,
            "max_position_embeddings": 16384,
            "model_type": "qwen3_vl_text",
            "num_attention_heads": 4,
            "num_hidden_layers": 4,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-06,
            "rope_scaling": {"mrope_interleaved": True, "mrope_section": [12, 10, 10], "rope_type": "default"},
            "rope_theta": 5000000,
            "tie_word_embeddings": True,
            "use_cache": True,
            "vocab_size": VOCABULARY,
        },
        "tie_word_embeddings": True,
        "transformers_version": "4.57.0",
        "video_token_id": token_id("<|video_pad|>"),
        "vision_config": {
            "deepstack_visual_indexes": [0, 1, 2],
            "depth": 4,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": 128,
            "in_channels": 3,
            "initializer_range": 0.02,
            "intermediate_size": 512,
            "model_type": "qwen3_vl",
            "num_heads": 2,
            "num_position_embeddings": 256,
            "out_hidden_size": 256,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
        },
        "vision_end_token_id": token_id("<|vision_end|>"),
        "vision_start_token_id": token_id("<|vision_start|>"),
    }


def write_folder(out: Path, tokenizer: Tokenizer, config: dict[str, Any]) -> None:
    """Every file of the folder but the weights and the model card."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    tokenizer.model.save(str(out))  # vocab.json and merges.txt
    added = {tokenizer.token_to_id(token): (token, special) for token, special in ADDED_TOKENS}
    template = (HERE / "shapes_vl_template.jinja").read_text().strip()
    visual: dict[str, Any] = {"patch_size": PATCH, "temporal_patch_size": 2, "merge_size": MERGE}
    visual |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "processor_class": "Qwen3VLProcessor"}
    files: dict[str, Any] = {
        "config.json": config,
        "generation_config.json": {
            "bos_token_id": config["text_config"]["bos_token_id"],
            "pad_token_id": config["text_config"]["bos_token_id"],
            "do_sample": True,
            "eos_token_id": [config["text_config"]["eos_token_id"], config["text_config"]["bos_token_id"]],
            "top_p": 0.8,
            "top_k": 20,
            "temperature": 0.7,
            "repetition_penalty": 1.0,
            "transformers_version": "4.57.0",
        },
        "tokenizer_config.json": {
            "add_bos_token": False,
            "add_prefix_space": False,
            "added_tokens_decoder": {
                str(token_id): {
                    "content": token,
                    "lstrip": False,
                    "normalized": False,
                    "rstrip": False,
                    "single_word": False,
                    "special": special,
                }
                for token_id, (token, special) in sorted(added.items())
            },
            "additional_special_tokens": [token for token, special in ADDED_TOKENS[1:] if special],
            "bos_token": None,
            "chat_template": template,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "errors": "replace",
            "model_max_length": config["text_config"]["max_position_embeddings"],
            "pad_token": "<|endoftext|>",
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
        "chat_template.json": {"chat_template": template},
        "preprocessor_config.json": {
            "size": {"longest_edge": 65536, "shortest_edge": 4096},  # pixels: 64 x 64 to 256 x 256
            **visual,
            "image_processor_type": "Qwen2VLImageProcessorFast",
        },
        "video_preprocessor_config.json": {
            "size": {"longest_edge": 262144, "shortest_edge": 4096},
            **visual,
            "video_processor_type": "Qwen3VLVideoProcessor",
        },
    }
    for name, content in files.items():
        (out / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def patchify(pictures: np.ndarray) -> np.ndarray:
    """[N, S, S, 3] uint8 pictures to [N * (S/16)**2, 1536] float patches, as the image processor makes them."""
    n, side = len(pictures), pictures.shape[1] // (PATCH * MERGE)
    x = pictures.astype(np.float32) / 127.5 - 1
    x = x.reshape(n, side, MERGE, PATCH, side, MERGE, PATCH, 3)  # n, row, in-row, y, column, in-column, x, channel
    x = x.transpose(0, 1, 4, 2, 5, 7, 3, 6)  # n, row, column, in-row, in-column, channel, y, x
    x = np.repeat(x[:, :, :, :, :, :, None], 2, axis=6)  # a still picture fills both frames of a temporal patch
    return x.reshape(n * (side * MERGE) ** 2, -1)


def mrope_positions(ids: list[int], image_id: int, cells: int) -> list[list[int]]:
    """[3, len(ids)] time, row and column positions, as Qwen3-VL counts them, for images of cells x cells tokens."""
    positions: list[list[int]] = [[], [], []]
    at = index = 0
    while index < len(ids):
        if ids[index] == image_id:
            for cell in range(cells * cells):
                for axis, value in zip(positions, (at, at + cell // cells, at + cell % cells), strict=True):
                    axis.append(value)
            index, at = index + cells * cells, at + cells
        else:
            for axis in positions:
                axis.append(at)
            index, at = index + 1, at + 1
    return positions


def equal_pictures_attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: None, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    """Attention within each of many equally large pictures; query, key, value: [1, heads, pictures * L, dim]."""
    pictures = len(kwargs["cu_seq_lens_q"]) - 1
    _, heads, total, dim = query.shape

    def split(x: torch.Tensor) -> torch.Tensor:
        return x.reshape(heads, pictures, total // pictures, dim).transpose(0, 1)

    out = torch.nn.functional.scaled_dot_product_attention(split(query), split(key), split(value))
    return out.permute(0, 2, 1, 3).reshape(1, total, heads, dim), None


class Conversations(IterableDataset):  # type: ignore[misc]
    """Endless batches of generated conversations; every batch has one picture size."""

    def __init__(self, tokenizer: Tokenizer, batch: int, seed: int):
        self.encode = tokenizer.encode
        self.pad_id = tokenizer.get_vocab()["<|endoftext|>"]
        self.image_id = tokenizer.get_vocab()["<|image_pad|>"]
        self.batch, self.seed = batch, seed

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        info = torch.utils.data.get_worker_info()
        rng = random.Random(self.seed * 1000 + (info.id if info else 0))
        while True:
            yield self.make_batch(rng)

    def make_batch(self, rng: random.Random) -> dict[str, torch.Tensor]:
        side = rng.choice((64, 64, 64, 96, 128, 192))
        image = f"<|vision_start|>{'<|image_pad|>' * (side // (PATCH * MERGE)) ** 2}<|vision_end|>"
        rows, labels = [], []
        pictures: list[np.ndarray] = []
        for _ in range(self.batch):
            ids: list[int] = []
            known: list[int] = []
            for text, learn in self.conversation(rng, side, image, pictures):
                tokens = self.encode(text).ids
                ids += tokens
                known += tokens if learn else [-100] * len(tokens)
            rows.append(ids)
            labels.append(known)
        length = max(map(len, rows))
        pad, image_id, cells = self.pad_id, self.image_id, side // (PATCH * MERGE)
        positions = [mrope_positions(row + [pad] * (length - len(row)), image_id, cells) for row in rows]
        return {
            "input_ids": torch.tensor([row + [pad] * (length - len(row)) for row in rows]),
            "attention_mask": torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows]),
            "labels": torch.tensor([row + [-100] * (length - len(row)) for row in labels]),
            "pixel_values": torch.from_numpy(patchify(np.stack(pictures))),
            # Pictures of one size as the frames of one "video": the same sums, without a Python loop over pictures.
            "image_grid_thw": torch.tensor([[len(pictures), side // PATCH, side // PATCH]]),
            "position_ids": torch.tensor(positions).transpose(0, 1),
        }

    def conversation(
        self, rng: random.Random, side: int, image: str, pictures: list[np.ndarray]
    ) -> Iterator[tuple[str, bool]]:
        """Pieces of one conversation as (text, whether it is learnt); appends its pictures."""

        def scene(max_shapes: int) -> shapes.Scene:
            made = shapes.sample_scene(rng, max_shapes)
            pictures.append(np.asarray(shapes.render(made, side, rng)))
            return made

        if rng.random() < 0.2:
            yield f"<|im_start|>system\n{rng.choice(shapes.SYSTEM_PROMPTS)}<|im_end|>\n", False
        draw = rng.random()
        if draw < 0.08:
            turns = [(image + image, *shapes.pair_turn(scene(1), scene(1), rng))]
        else:
            one = scene(1 if side == 64 else 3)
            turns = [(image, *shapes.picture_turn(one, rng))]
            if draw < 0.25:
                turns.append(("", *shapes.picture_turn(one, rng)))
            if draw > 0.9:
                turns.insert(rng.randint(0, 1), ("", *shapes.echo_turn(rng)))
        for images, prompt, answer in turns:
            yield f"<|im_start|>user\n{images}{prompt}<|im_end|>\n<|im_start|>assistant\n", False
            yield f"{answer}<|im_end|>\n", True


def train(config: dict[str, Any], tokenizer: Tokenizer, minutes: float, batch: int, workers: int) -> Any:
    """A model trained for `minutes`; the learning rate falls to zero with the clock."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = Qwen3VLForConditionalGeneration(Qwen3VLConfig.from_dict(config)).to(device)
    # The library calls an attention function once for all pictures only where its name has "flash" in it.
    AttentionInterface.register("flash_equal_pictures", equal_pictures_attention)
    model.model.visual.config._attn_implementation = "flash_equal_pictures"
    torch.backends.cuda.matmul.allow_tf32 = True
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, betas=(0.9, 0.98), weight_decay=0.05)
    loader = DataLoader(Conversations(tokenizer, batch, seed=1), batch_size=None, num_workers=workers)
    start, running, skipped = time.monotonic(), math.nan, 0
    for step, cpu_batch in enumerate(loader):
        share = (time.monotonic() - start) / (60 * minutes)
        if share >= 1:
            break
        lr = PEAK_LR * min(1.0, (step + 1) / 500) * 0.5 * (1 + math.cos(math.pi * share))
        for group in optimizer.param_groups:
            group["lr"] = lr
        inputs = {name: tensor.to(device, non_blocking=True) for name, tensor in cpu_batch.items()}
        loss = model(**inputs).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if torch.isfinite(norm):
            optimizer.step()
        else:
            skipped += 1
        optimizer.zero_grad(set_to_none=True)
        if step % 200 == 0:
            running = loss.item()
            print(
                f"step {step}  loss {running:.4f}  lr {lr:.2e}  {step * batch:,} conversations  {share:.0%}", flush=True
            )
    print(
        f"{step} steps of {batch} conversations in {minutes} minutes on {device}, {skipped} skipped; "
        f"last printed loss {running:.4f}"
    )
    return model.cpu().eval()


def save_weights(model: Any, out: Path) -> None:
    """bfloat16 safetensors under the hub's tensor names; the tied lm_head is left out, as there."""
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    half = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in tensors.items()}
    save_file(half, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, required=True, help="training time")
    parser.add_argument("--batch", type=int, default=256, help="conversations a step")
    parser.add_argument("--workers", type=int, default=14, help="processes that draw pictures")
    args = parser.parse_args()
    tokenizer = build_tokenizer()
    config = model_config(tokenizer)
    write_folder(args.out, tokenizer, config)
    save_weights(train(config, tokenizer, args.minutes, args.batch, args.workers), args.out)
    size = (args.out / "model.safetensors").stat().st_size
    print(f"wrote {args.out}: {size / 1e6:.1f} MB of weights, vocabulary {tokenizer.get_vocab_size()}")


if __name__ == "__main__":
    main()
