#!/usr/bin/env bash
# Expected: since transformers fixed its loss under gradient accumulation (end of 2024), two steps of one row are
# the same update as one step of two rows: the Trainer hands the number of label tokens of the whole batch to the
# model.
#
# What happens: that depends on the model's class. Qwen2-VL, Qwen2.5-VL, Qwen3-VL, Gemma 3, GLM-4V, PaliGemma and
# many other vision-language models carry accepts_loss_kwargs = False. For these the Trainer averages the means of
# the micro-batches, so each row counts the same however long its answer is, while one larger batch (and LLaVA, or
# any plain language model) counts each token the same. The two updates point in clearly different directions, and
# nothing is said.
#
# Versions: transformers 5.24.0, accelerate 1.15.0, torch 2.13.0, random tiny models.
#
# Why it matters: memory forces vision-language models to batch size 1 with accumulation, and answers of one word
# stand beside answers of a paragraph in the same data. "yes" then weighs as much as 40 tokens of transcription. A
# recipe with batch 8 cannot be reproduced as 1 x 8 on a smaller card, and the same script behaves differently for
# LLaVA and Qwen.
#
# Source: transformers 5.24.0, the class attribute accepts_loss_kwargs in models/qwen2_5_vl/modeling_qwen2_5_vl.py
# and others; trainer.py (model_accepts_loss_kwargs).
#
# Output seen (one optimizer step; rows with 2 and 40 label tokens; cosine of the two updates, ratio of their lengths):
#   LLaVA         batch 2 against 1 x 2: cosine 1.00, length 1.00
#   Qwen2.5-VL    batch 2 against 1 x 2: cosine 0.41, length 2.32
#   Qwen3-VL      batch 2 against 1 x 2: cosine 0.42, length 2.18
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq torch==2.13.0 transformers==5.24.0 accelerate==1.15.0 pillow==13.0.0
cd "$work"
TRANSFORMERS_VERBOSITY=error "$work/venv/bin/python" -W ignore - <<'PY'
import sys

import torch
import transformers as t

small = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
text = {**small, "num_key_value_heads": 2, "vocab_size": 200}
rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}}
vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 64}
tags = {"image_token_id": 100, "video_token_id": 101, "vision_start_token_id": 102, "vision_end_token_id": 103}


def llava():
    clip = t.CLIPVisionConfig(**small, image_size=28, patch_size=14)
    config = t.LlavaConfig(text_config=t.LlamaConfig(**text), vision_config=clip, image_token_index=100)
    return t.LlavaForConditionalGeneration(config)


def qwen2_5():
    config = t.Qwen2_5_VLConfig(text_config={**text, **rope}, vision_config=vision, **tags)
    return t.Qwen2_5_VLForConditionalGeneration(config)


def qwen3():
    tower = {**vision, "deepstack_visual_indexes": [0]}
    config = t.Qwen3VLConfig(text_config={**text, **rope, "head_dim": 16}, vision_config=tower, **tags)
    return t.Qwen3VLForConditionalGeneration(config)


torch.manual_seed(1)
rows = []
for answer in (2, 40):
    ids = torch.randint(3, 90, (48,))
    labels = ids.clone()
    labels[:-answer] = -100
    rows.append({"input_ids": ids, "labels": labels, "attention_mask": torch.ones(48, dtype=torch.long)})


def update(make, batch, accumulation):
    """The change of all weights, flat, that one step of plain SGD makes to a fresh model."""
    torch.manual_seed(0)
    model = make()
    before = [weight.detach().clone() for weight in model.parameters()]
    arguments = t.TrainingArguments(
        "out", per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, max_steps=1, optim="sgd",
        learning_rate=1.0, lr_scheduler_type="constant", max_grad_norm=0, save_strategy="no", logging_strategy="no",
        report_to=[], disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    trainer = t.Trainer(model, arguments, train_dataset=rows)
    trainer.remove_callback(t.PrinterCallback)
    trainer.train()
    return torch.cat([(new - old).flatten() for new, old in zip(model.parameters(), before)]).detach()


for name, make, same in (("LLaVA", llava, True), ("Qwen2.5-VL", qwen2_5, False), ("Qwen3-VL", qwen3, False)):
    whole, parts = update(make, 2, 1), update(make, 1, 2)
    cosine = torch.cosine_similarity(whole, parts, dim=0).item()
    ratio = (parts.norm() / whole.norm()).item()
    if same != (cosine > 0.999 and abs(ratio - 1) < 0.01):
        sys.exit(f"The behaviour has changed: updates of {name} have cosine {cosine:.3f} and ratio {ratio:.3f}.")
    print(f"{name:<13} batch 2 against 1 x 2: cosine {cosine:.2f}, length {ratio:.2f}")
PY
