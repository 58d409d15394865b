"""Tiny random models of families without code of their own, as folders laid out like those on the Hugging Face hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.support.paths import SHAPES_VL

OTHERS = ["llava", "gemma3", "idefics3", "internvl"]

# ChatML, as the Qwen-based LLaVA and InternVL models have it.
CHATML = """
{%- for message in messages -%}
    {{- '<|im_start|>' + message.role + '\n' -}}
    {%- for part in message.content -%}
        {{- IMAGE if part.type == 'image' else part.text -}}
    {%- endfor -%}
    {{- '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
"""
# Gemma 3's: the system prompt goes into the first user turn, texts are trimmed, the assistant is called model.
GEMMA = """{{ bos_token }}
{%- if messages[0].role == 'system' -%}
    {%- set first = messages[0].content[0].text + '\n\n' -%}{%- set chat = messages[1:] -%}
{%- else -%}
    {%- set first = '' -%}{%- set chat = messages -%}
{%- endif -%}
{%- for message in chat -%}
    {{- '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' -}}
    {{- first if loop.first else '' -}}
    {%- for part in message.content -%}
        {{- '<start_of_image>' if part.type == 'image' else part.text | trim -}}
    {%- endfor -%}
    {{- '<end_of_turn>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\n' -}}{%- endif -%}
"""
# Idefics 3's and SmolVLM's: a space after the colon belongs to the answer.
IDEFICS = """<|im_start|>
{%- for message in messages -%}
    {{- message.role | capitalize + (':' if message.content[0].type == 'image' else ': ') -}}
    {%- for part in message.content -%}
        {{- '<image>' if part.type == 'image' else part.text -}}
    {%- endfor -%}
    {{- '<end_of_utterance>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'Assistant:' -}}{%- endif -%}
"""

PICTURE = {"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.25] * 3, "do_rescale": True}
TEXT: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 4096, "vocab_size": 2048,
}  # fmt: skip
VISION: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32,
    "patch_size": 8, "num_channels": 3,
}  # fmt: skip
# For each family: the new names of the tokenizer's special tokens by id, which of them end an answer and fill up, the
# named ones; the configuration; the processor's files; the template; the prefix its checkpoints' names have.
FAMILIES: dict[str, dict[str, Any]] = {
    "llava": {
        "class": "LlavaForConditionalGeneration",
        "tokens": {2034: "<image>"}, "eos": 2024, "named": {},
        "config": {
            "image_token_index": 2034, "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
            "image_seq_length": 16, "text_config": TEXT | {"model_type": "llama", "bos_token_id": 2022},
            "vision_config": VISION | {"model_type": "clip_vision_model", "projection_dim": 32},
        },
        "preprocessor": PICTURE | {
            "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32}, "do_center_crop": True,
            "crop_size": {"height": 32, "width": 32}, "do_resize": True, "resample": 3, "do_convert_rgb": True,
        },
        "processor": {
            "processor_class": "LlavaProcessor", "patch_size": 8, "num_additional_image_tokens": 1,
            "vision_feature_select_strategy": "default", "image_token": "<image>",
        },
        "template": CHATML.replace("IMAGE", "'<image>\n'"), "tower": "vision_tower.vision_model.",
    },
    "gemma3": {
        "class": "Gemma3ForConditionalGeneration",
        "tokens": {
            2022: "<pad>", 2023: "<start_of_turn>", 2024: "<end_of_turn>", 2025: "<bos>", 2026: "<eos>",
            2031: "<start_of_image>", 2032: "<end_of_image>", 2034: "<image_soft_token>",
        },
        "eos": [2026, 2024], "bos": 2025,
        "named": {
            "image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>",
        },
        "config": {
            "image_token_index": 2034, "boi_token_index": 2031, "eoi_token_index": 2032, "mm_tokens_per_image": 4,
            "text_config": TEXT | {
                "model_type": "gemma3_text", "sliding_window": 16, "query_pre_attn_scalar": 16,
                "layer_types": ["sliding_attention", "full_attention"], "bos_token_id": 2025, "pad_token_id": 2022,
            },
            "vision_config": VISION | {"model_type": "siglip_vision_model", "vision_use_head": False},
        },
        "preprocessor": PICTURE | {
            "image_processor_type": "Gemma3ImageProcessor", "size": {"height": 32, "width": 32}, "do_resize": True,
            "resample": 2, "image_seq_length": 4,
        },
        "processor": {"processor_class": "Gemma3Processor", "image_seq_length": 4},
        "template": GEMMA, "tower": "vision_tower.vision_model.", "tied": True,
    },
    "idefics3": {
        "class": "Idefics3ForConditionalGeneration",
        "tokens": {
            2024: "<end_of_utterance>", 2025: "<fake_token_around_image>", 2026: "<global-img>", 2034: "<image>",
            2027: "<row_1_col_1>", 2028: "<row_1_col_2>", 2029: "<row_2_col_1>", 2030: "<row_2_col_2>",
        },
        "eos": 2024, "named": {},
        "config": {
            "image_token_id": 2034, "scale_factor": 2, "pad_token_id": 2022,
            "text_config": TEXT | {"model_type": "llama", "pad_token_id": 2022, "bos_token_id": 2023},
            "vision_config": VISION | {"model_type": "idefics3_vision"},
        },
        "preprocessor": PICTURE | {
            "image_processor_type": "Idefics3ImageProcessor", "size": {"longest_edge": 64}, "do_convert_rgb": True,
            "max_image_size": {"longest_edge": 32}, "do_image_splitting": True, "do_resize": True, "resample": 1,
            "do_pad": True,
        },
        "processor": {"processor_class": "Idefics3Processor", "image_seq_len": 4},
        "template": IDEFICS, "tower": None,
    },
    "internvl": {
        "class": "InternVLForConditionalGeneration",
        "tokens": {2031: "<img>", 2032: "</img>", 2034: "<IMG_CONTEXT>", 2035: "<video>"}, "eos": 2024,
        "named": {
            "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        "config": {
            "image_token_id": 2034, "image_seq_length": 4, "downsample_ratio": 0.5, "vision_feature_layer": -1,
            "text_config": TEXT | {"model_type": "qwen2", "bos_token_id": 2022},
            "vision_config": VISION | {
                "model_type": "internvl_vision", "image_size": [32, 32], "patch_size": [8, 8],
            },
        },
        "preprocessor": PICTURE | {
            "image_processor_type": "GotOcr2ImageProcessorFast", "size": {"height": 32, "width": 32},
            "crop_to_patches": True, "min_patches": 1, "max_patches": 4, "do_resize": True, "resample": 3,
        },
        "processor": {"processor_class": "InternVLProcessor", "image_seq_length": 4},
        "template": CHATML.replace("IMAGE", "'<IMG_CONTEXT>\n'"), "tower": "vision_tower.",
    },
}  # fmt: skip


def other_folder(family: str, path: Path, **changes: Any) -> Path:
    """The family's folder; `changes` replace entries of its description."""
    import transformers

    made = FAMILIES[family] | changes
    shutil.copytree(
        SHAPES_VL, path, ignore=shutil.ignore_patterns("*.safetensors", "*template*", "*processor*", "v*", "m*")
    )
    _write_tokenizer(path, made)
    ends = {"eos_token_id": made["eos"], "tie_word_embeddings": made.get("tied", False)}
    config = {"architectures": [made["class"]], "model_type": family, "torch_dtype": "bfloat16"} | made["config"] | ends
    config["text_config"] = config["text_config"] | {"tie_word_embeddings": made.get("tied", False)}
    (path / "config.json").write_text(json.dumps(config, indent=1))
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": made["eos"]}))
    (path / "preprocessor_config.json").write_text(
        json.dumps(made["preprocessor"] | {"processor_class": made["processor"]["processor_class"]})
    )
    (path / "processor_config.json").write_text(json.dumps(made["processor"]))
    if made["template"]:
        (path / "chat_template.jinja").write_text(made["template"].strip())
    torch.manual_seed(3)
    model = getattr(transformers, made["class"])(transformers.AutoConfig.from_pretrained(path))
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name != "lm_head.weight" or not made.get("tied"):
            spread = 3 if tensor.ndim > 1 else 1
            file_name = _old(name, made["tower"]) if made["tower"] else name
            tensors[file_name] = (tensor * spread).to(torch.bfloat16).contiguous()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


def _write_tokenizer(path: Path, made: dict[str, Any]) -> None:
    tokens = {int(key): value for key, value in made["tokens"].items()}
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    for added in tokenizer["added_tokens"]:
        added["content"] = tokens.get(added["id"], added["content"])
    named = {added["id"]: added["content"] for added in tokenizer["added_tokens"]}
    config = json.loads((path / "tokenizer_config.json").read_text())
    for key in ("chat_template", "additional_special_tokens", "added_tokens_decoder"):
        config.pop(key, None)
    last = made["eos"][-1] if isinstance(made["eos"], list) else made["eos"]
    config |= {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "attention_mask"],
        "extra_special_tokens": made["named"],
        "eos_token": named[last], "pad_token": named[2022], "processor_class": made["processor"]["processor_class"],
    }  # fmt: skip
    if "bos" in made:  # like Gemma's, the tokenizer puts it in front by itself
        bos = named[made["bos"]]
        config["bos_token"] = bos
        first, second = {"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
        other = {"Sequence": {"id": "B", "type_id": 0}}
        tokenizer["post_processor"] = {
            "type": "TemplateProcessing", "single": [first, second], "pair": [first, second, other],
            "special_tokens": {bos: {"id": bos, "ids": [made["bos"]], "tokens": [bos]}},
        }  # fmt: skip
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    (path / "tokenizer_config.json").write_text(json.dumps(config))


def _old(name: str, tower: str) -> str:
    """The name that checkpoints have from before transformers 4.52, in which the language model was one of its own."""
    if name == "lm_head.weight":
        return "language_model.lm_head.weight"
    name = name.removeprefix("model.").replace("language_model.", "language_model.model.")
    return name.replace("vision_tower.vision_model.", "vision_tower.").replace("vision_tower.", tower)


def experts_folder(path: Path) -> Path:
    """A tiny random Qwen3-VL-MoE, its experts laid out as in the published checkpoints: [experts, in, out]."""
    import transformers

    shutil.copytree(SHAPES_VL, path, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((path / "config.json").read_text())
    config |= {"architectures": ["Qwen3VLMoeForConditionalGeneration"], "model_type": "qwen3_vl_moe"}
    config["vision_config"]["model_type"] = "qwen3_vl_moe"
    config["text_config"] |= {
        "model_type": "qwen3_vl_moe_text", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64,
        "decoder_sparse_step": 1, "mlp_only_layers": [],
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(config))
    torch.manual_seed(3)
    made = transformers.Qwen3VLMoeForConditionalGeneration(transformers.AutoConfig.from_pretrained(path))
    old = made.model.language_model.layers[0].mlp.experts.down_proj.shape[1] == 64  # transformers 4.57 has that layout
    tensors = {}
    for name, tensor in made.state_dict().items():
        if name != "lm_head.weight":
            tensor = tensor.transpose(1, 2) if ".experts." in name and not old else tensor
            tensors[name] = (tensor * 3).to(torch.bfloat16).contiguous()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path
