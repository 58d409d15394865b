"""Tiny random models of the three families, as folders laid out like the ones on the Hugging Face hub."""

from __future__ import annotations

import importlib
import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from finetune.evaluation.evaluate import evaluate
from finetune.model.base import load_base
from finetune.model.folder import open_base
from finetune.model.trained import load_trained
from finetune.recipe.schema import Recipe
from tests.support.paths import SHAPES_VL

FAMILIES = ["qwen3_vl", "qwen2_5_vl", "qwen2_vl"]

# What Qwen2-VL's and Qwen2.5-VL's templates do with texts, images and videos: a default system prompt comes first.
TEMPLATE = """
{%- for message in messages -%}
    {%- if loop.first and message.role != 'system' -%}
        {{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' -}}
    {%- endif -%}
    {{- '<|im_start|>' + message.role + '\n' -}}
    {%- if message.content is string -%}
        {{- message.content -}}
    {%- else -%}
        {%- for part in message.content -%}
            {%- if part.type == 'image' -%}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
            {%- elif part.type == 'video' -%}
                {{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
            {%- else -%}
                {{- part.text -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{- '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\n' -}}
{%- endif -%}
"""

TEXT: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 4096, "rope_theta": 1000000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}, "tie_word_embeddings": True,
}  # fmt: skip
VISION: dict[str, dict[str, Any]] = {
    "qwen2_vl": {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14},
    "qwen2_5_vl": {
        "depth": 2, "hidden_size": 32, "out_hidden_size": 64, "num_heads": 2, "intermediate_size": 48,
        "patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1],
    },
}  # fmt: skip
CLASSES = {"qwen2_vl": ("Qwen2VL", "Qwen2VL"), "qwen2_5_vl": ("Qwen2_5_VL", "Qwen2_5_VL")}


def family_folder(family: str, path: Path) -> Path:
    """Qwen3-VL: the repository's own base; the others: random weights under the names that their checkpoints use."""
    if family == "qwen3_vl":
        return SHAPES_VL
    import transformers

    shutil.copytree(SHAPES_VL, path, ignore=shutil.ignore_patterns("*.safetensors", "chat_template*", "*processor*"))
    base_config = json.loads((SHAPES_VL / "config.json").read_text())
    special = {key: base_config[key] for key in base_config if key.endswith("token_id")}
    ends = {key: base_config["text_config"][key] for key in ("bos_token_id", "eos_token_id", "vocab_size")}
    model_class, processor = CLASSES[family]
    config: dict[str, Any] = {
        "architectures": [f"{model_class}ForConditionalGeneration"], "model_type": family, "torch_dtype": "bfloat16",
        "vision_config": VISION[family] | {"in_channels": 3, "spatial_merge_size": 2, "temporal_patch_size": 2},
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(config | TEXT | ends | special, indent=1))
    preprocessor = {
        "min_pixels": 3136, "max_pixels": 50176, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
        "image_mean": [0.5] * 3, "image_std": [0.25] * 3, "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": f"{processor}Processor",
    }  # fmt: skip
    (path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    video = {key: preprocessor[key] for key in preprocessor if not key.startswith(("image_processor", "m"))}
    video |= {"merge_size": 2, "size": {"shortest_edge": 784, "longest_edge": 78400}}
    video |= {"video_processor_type": "Qwen2VLVideoProcessor"}
    (path / "video_preprocessor_config.json").write_text(json.dumps(video))
    (path / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    tokenizer = json.loads((path / "tokenizer_config.json").read_text())
    tokenizer.pop("chat_template", None)
    (path / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"processor_class": f"{processor}Processor"}))
    torch.manual_seed(3)
    made = getattr(transformers, f"{model_class}ForConditionalGeneration")(
        transformers.AutoConfig.from_pretrained(path)
    )
    tensors = {}
    for name, tensor in made.state_dict().items():
        if name != "lm_head.weight":
            old = name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")
            tensors[old] = (tensor * 3).to(torch.bfloat16).contiguous()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


def reference_positions(
    family: str, folder: Path, ids: Any, grids: list[tuple[int, int, int]],
    videos: list[tuple[int, int, int]] | None = None, seconds: list[float] | None = None,
) -> Any:  # fmt: skip
    """[3, L] positions by the model's own get_rope_index, under transformers 4.57 and 5.

    grids: of the images; videos: of the videos; seconds: from a pair of their frames to the next.
    """
    from transformers import AutoConfig

    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    wanted = family.replace("_", "") + "model"
    model_class = next(value for name, value in vars(module).items() if name.lower().replace("_", "") == wanted)
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = model_class(config)
    tokens = torch.from_numpy(ids)[None]
    given = {"input_ids": tokens, "image_grid_thw": torch.tensor(grids) if grids else None}
    if videos:
        given["video_grid_thw"] = torch.tensor(videos)
    if videos and family == "qwen2_5_vl":
        given["second_per_grid_ts"] = torch.tensor(seconds)
    if "mm_token_type_ids" in inspect.signature(model.get_rope_index).parameters:
        is_image, is_video = tokens == config.image_token_id, tokens == config.video_token_id
        given["mm_token_type_ids"] = is_image.int() + 2 * is_video.int()
    return model.get_rope_index(**given)[0][:, 0].numpy()


def assert_merged_as_peft_does(target: Path, recipe_of: Callable[..., Recipe], trained: Path) -> None:
    """The merged folder, read by transformers, has PEFT's weights, and it answers as the base with the adapter does."""
    assert_weights_as_peft_merges_them(target, recipe_of, trained)
    models = {"first": {"adapter_name_or_path": str(trained)}, "second": {"model_name_or_path": str(target)}}
    for name, keys in models.items():
        evaluate(recipe_of(**keys, output_dir=str(trained.parent / name)))
    first, second = ((trained.parent / name / "generated_predictions.jsonl").read_text() for name in models)
    assert first == second


def assert_weights_as_peft_merges_them(target: Path, recipe_of: Callable[..., Recipe], trained: Path) -> None:
    """The merged folder, read by transformers, has PEFT's weights within one step of rounding."""
    from transformers import AutoModelForImageTextToText

    merged, info = AutoModelForImageTextToText.from_pretrained(target, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    base = load_base(open_base(recipe_of()), recipe_of(), torch.device("cpu"), torch.float32)
    reference = load_trained(base, trained).merge_and_unload().state_dict()
    for name, tensor in merged.state_dict().items():
        assert torch.allclose(tensor, reference[name].to(torch.bfloat16).float(), atol=0, rtol=2**-7), name
