#!/usr/bin/env bash
# Expected: llm_int8_skip_modules=["visual"] in a BitsAndBytesConfig leaves the vision tower in full precision and
# everything else as it would be without the option, the output head (lm_head) in full precision among it.
#
# What happens:
# - The vision tower is quantised all the same. A name in the list has to match the module's path from its start, or
#   at its end. The path of a linear layer is "model.visual.blocks.0.attn.qkv", so "visual" matches nothing, though it
#   is how the tower is usually called and a part of the path.
# - The output head, which nobody named, is quantised too: a list of any kind replaces the built-in list of modules to
#   leave alone. The answers to a question without any image then move away from the model's own.
# Neither is said in a warning. With tied embeddings the first forward pass stops at an assertion at least.
#
# Versions: transformers 5.24.0, bitsandbytes 0.50.2, accelerate 1.15.0, torch 2.13.0; on CPU.
#
# Why it matters: QLoRA on vision-language models is often advised to keep the vision tower out of 4 bit. With the short
# name the tower is at 4 bit and the head as well, which is worse than no option at all. With the long name the head
# alone is lost. Only the list ["model.visual", "lm_head"] does what was meant; count the Linear4bit modules after
# loading. An adapter that was trained on such a head learns to make up for its errors, and is then wrong on another.
#
# Source: transformers 5.24.0, quantizers/base.py (get_modules_to_not_convert: the built-in list is used if no list is
# given) and quantizers/quantizers_utils.py (should_convert_module).
#
# Output seen (linear layers at 4 bit; error of the logits of a prompt without an image):
#   Qwen2.5-VL
#     skip None                                tower 7 of 7, lm_head 0 of 1, error 0.13
#     skip ['visual']                          tower 7 of 7, lm_head 1 of 1, error 0.18
#     skip ['model.visual']                    tower 0 of 7, lm_head 1 of 1, error 0.18
#     skip ['model.visual', 'lm_head']         tower 0 of 7, lm_head 0 of 1, error 0.13
#   LLaVA
#     skip None                                tower 6 of 6, lm_head 0 of 1, error 0.15
#     skip ['vision_tower']                    tower 6 of 6, lm_head 1 of 1, error 0.19
#     skip ['model.vision_tower']              tower 0 of 6, lm_head 1 of 1, error 0.19
#     skip ['model.vision_tower', 'lm_head']   tower 0 of 6, lm_head 0 of 1, error 0.15
#   warnings: 0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq torch==2.13.0 transformers==5.24.0 bitsandbytes==0.50.2 accelerate==1.15.0
cd "$work"
TRANSFORMERS_VERBOSITY=warning "$work/venv/bin/python" - <<'PY'
import logging
import sys
import warnings

import torch
from transformers import (
    AutoModelForImageTextToText,
    BitsAndBytesConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.utils import logging as transformers_logging

SIZE = {"hidden_size": 64, "intermediate_size": 128}
TEXT = {**SIZE, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256}
TEXT |= {"bos_token_id": 1, "eos_token_id": 2}
messages = []


class Listener(logging.Handler):
    def emit(self, record):
        messages.append(record.getMessage())


def qwen():
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    config = Qwen2_5_VLConfig(
        text_config={**TEXT, "rope_parameters": rope},
        vision_config={**SIZE, "depth": 1, "num_heads": 4, "out_hidden_size": 64},
        image_token_id=250,
        video_token_id=251,
        vision_start_token_id=252,
        vision_end_token_id=253,
        tie_word_embeddings=False,
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def llava():
    vision = {**SIZE, "model_type": "clip_vision_model", "num_hidden_layers": 1, "num_attention_heads": 4}
    config = LlavaConfig(
        text_config={**TEXT, "model_type": "llama"},
        vision_config={**vision, "image_size": 28, "patch_size": 14},
        image_token_index=250,
        tie_word_embeddings=False,
    )
    return LlavaForConditionalGeneration(config)


def is_quantised(model, part):
    linear = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    kinds = [type(module).__name__ == "Linear4bit" for name, module in linear.items() if part in name]
    return f"{sum(kinds)} of {len(kinds)}"


logging.getLogger("bitsandbytes").setLevel("ERROR")
transformers_logging.disable_progress_bar()
prompt = torch.arange(3, 40)[None]
for family, build, tower, layers in (("Qwen2.5-VL", qwen, "visual", 7), ("LLaVA", llava, "vision_tower", 6)):
    torch.manual_seed(0)
    original = build().eval()
    original.save_pretrained(tower)
    with torch.no_grad():
        expected = original(input_ids=prompt).logits
    everything, nothing, head, no_head = f"{layers} of {layers}", f"0 of {layers}", "1 of 1", "0 of 1"
    cases = [
        (None, everything, no_head),
        ([tower], everything, head),
        ([f"model.{tower}"], nothing, head),
        ([f"model.{tower}", "lm_head"], nothing, no_head),
    ]
    print(family)
    errors = []
    transformers_logging.get_logger().addHandler(listener := Listener())
    for skip, tower_expected, head_expected in cases:
        quantisation = BitsAndBytesConfig(
            load_in_4bit=True, llm_int8_skip_modules=skip, bnb_4bit_compute_dtype=torch.float32
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = AutoModelForImageTextToText.from_pretrained(
                tower, quantization_config=quantisation, device_map="cpu", dtype=torch.float32
            )
        messages += [str(warning.message) for warning in caught if "transformers" in warning.filename]
        seen = is_quantised(model, f".{tower}."), is_quantised(model, "lm_head")
        with torch.no_grad():
            difference = model(input_ids=prompt).logits - expected
        errors.append(float(difference.norm() / expected.norm()))
        if seen != (tower_expected, head_expected):
            sys.exit(f"The behaviour has changed: with {skip} at 4 bit: tower {seen[0]}, head {seen[1]}.")
        print(f"  skip {skip!s:<35} tower {seen[0]}, lm_head {seen[1]}, error {errors[-1]:.2f}")
    transformers_logging.get_logger().removeHandler(listener)
    if not (errors[0] == errors[3] < errors[1] == errors[2]):
        sys.exit(f"The behaviour has changed: the errors of the logits are {errors}.")
    if messages:
        sys.exit(f"The behaviour has changed: transformers now says {messages}.")
print(f"warnings: {len(messages)}")
PY
