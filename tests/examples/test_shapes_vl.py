"""The small base model: the files, names and behaviour of Qwen3-VL-2B-Instruct's folder, and right captions."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from examples import make_shapes_vl, shapes, stretch_shapes_vl
from modelfiles.folder.model_folder import ModelFolder
from tests.support.paths import GOLDENS, SHAPES_VL

PROMPTS = json.loads((GOLDENS / "prompts_qwen3vl.json").read_text())["rows"]


@pytest.fixture(scope="module")
def processor() -> Any:
    return AutoProcessor.from_pretrained(SHAPES_VL)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForImageTextToText.from_pretrained(SHAPES_VL, dtype=torch.float32).eval()


def test_the_folder_has_the_files_of_the_official_one_and_at_most_12_mb_of_weights() -> None:
    assert {path.name for path in SHAPES_VL.iterdir()} == {
        "README.md",
        "chat_template.json",
        "config.json",
        "generation_config.json",
        "merges.txt",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "video_preprocessor_config.json",
        "vocab.json",
    }
    assert (SHAPES_VL / "model.safetensors").stat().st_size <= 12_000_000


def test_the_text_config_has_the_keys_that_servers_read() -> None:
    config = json.loads((SHAPES_VL / "config.json").read_text())
    text = config["text_config"]
    assert config["model_type"] == "qwen3_vl"
    assert {"bos_token_id", "eos_token_id", "dtype", "rope_theta", "rope_scaling", "vocab_size"} <= text.keys()
    tokens = json.loads((SHAPES_VL / "tokenizer.json").read_text())["added_tokens"]
    ids = {token["content"]: token["id"] for token in tokens}
    assert (text["bos_token_id"], text["eos_token_id"]) == (ids["<|endoftext|>"], ids["<|im_end|>"])
    assert config["image_token_id"] == ids["<|image_pad|>"]
    assert max(ids.values()) < text["vocab_size"]


def test_it_loads_with_no_missing_or_unexpected_keys() -> None:
    _, info = AutoModelForImageTextToText.from_pretrained(SHAPES_VL, output_loading_info=True)
    assert {name: found for name, found in info.items() if found} == {}


@pytest.mark.parametrize("case", PROMPTS, ids=lambda case: case["case"])
def test_the_chat_template_renders_what_the_official_one_renders(processor: Any, case: dict[str, Any]) -> None:
    messages = []
    for message in case["messages"]:
        images = message.get("images", 0)
        parts = [{"type": "image"}] * images + [{"type": "text", "text": message["content"]}]
        messages.append({**message, "content": parts if images else message["content"]})
    rendered = processor.apply_chat_template(messages, tools=case["tools"], add_generation_prompt=True, tokenize=False)
    assert rendered == case["hf_chat_template"]


def test_the_script_makes_the_tokenizer_and_configuration_that_lie_here(tmp_path: Path) -> None:
    tokenizer = make_shapes_vl.build_tokenizer()
    make_shapes_vl.write_folder(tmp_path, tokenizer, make_shapes_vl.model_config(tokenizer))
    for made in tmp_path.iterdir():
        assert made.read_text() == (SHAPES_VL / made.name).read_text(), made.name


def test_training_batches_hold_what_the_processor_and_the_model_compute(processor: Any) -> None:
    tokenizer = make_shapes_vl.build_tokenizer()
    config = make_shapes_vl.model_config(tokenizer)
    batch = make_shapes_vl.Conversations(tokenizer, batch=5, seed=0).make_batch(random.Random(4))
    model = Qwen3VLForConditionalGeneration(Qwen3VLConfig.from_dict(config))
    frames, height, width = batch["image_grid_thw"][0].tolist()
    is_image = (batch["input_ids"] == config["image_token_id"]).int()
    assert is_image.sum() * 4 == batch["pixel_values"].shape[0]
    positions, _ = model.model.get_rope_index(
        batch["input_ids"],
        mm_token_type_ids=is_image,
        image_grid_thw=torch.tensor([[1, height, width]] * frames),
        attention_mask=batch["attention_mask"],
    )
    real = batch["attention_mask"].bool()
    assert torch.equal(positions[:, real], batch["position_ids"][:, real])

    rng = random.Random(1)
    pictures = [shapes.render(shapes.sample_scene(rng, 2), 96, rng) for _ in range(2)]
    expected = processor.image_processor(images=pictures, return_tensors="pt")["pixel_values"]
    ours = torch.from_numpy(make_shapes_vl.patchify(np.stack([np.asarray(picture) for picture in pictures])))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


def test_it_captions_fresh_pictures(processor: Any, model: Any) -> None:
    rng = random.Random(2024)
    scenes = [shapes.sample_scene(rng, 1) for _ in range(40)]
    pictures = [shapes.render(scene, 64, rng) for scene in scenes]
    content = [{"type": "image"}, {"type": "text", "text": "Write a caption."}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=[prompt] * 40, images=[[picture] for picture in pictures], return_tensors="pt")
    answers = model.generate(**inputs, max_new_tokens=12, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    captions = processor.batch_decode(answers, skip_special_tokens=True)
    right = sum(c == shapes.caption(s).capitalize() + "." for c, s in zip(captions, scenes, strict=True))
    assert right >= 32, captions


def test_enlarged_pictures_are_those_of_the_processor_at_ollama_s_sizes(tmp_path: Path) -> None:
    stretch_shapes_vl.write_folder(SHAPES_VL, tmp_path)
    shutil.copyfile(SHAPES_VL / "model.safetensors", tmp_path / "model.safetensors")
    fewest, most = ModelFolder.open(tmp_path).image_pixel_limits
    assert (fewest, most) == (1024 * 32**2, 4096 * 32**2)
    rng = random.Random(3)
    pictures = [shapes.render(shapes.sample_scene(rng, 1), 64, rng) for _ in range(2)]
    made = AutoImageProcessor.from_pretrained(tmp_path)(images=pictures, return_tensors="pt")
    assert made["image_grid_thw"].tolist() == [[1, 64, 64]] * 2
    ours = stretch_shapes_vl.enlarged_patches(torch.from_numpy(np.stack([np.asarray(p) for p in pictures])), 32)
    assert (ours - made["pixel_values"]).abs().mean() < 0.002  # a level of 256 is 0.008; the processor rounds between


def test_conversations_about_enlarged_pictures_have_the_model_s_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stretch_shapes_vl, "STAGES", ((1.0, 4, 3),))
    tokenizer = Tokenizer.from_file(str(SHAPES_VL / "tokenizer.json"))
    batch = stretch_shapes_vl.EnlargedPictures(tokenizer, seed=0, minutes=1).make_batch(random.Random(1))
    ids = batch["input_ids"]
    image = ids == tokenizer.token_to_id("<|image_pad|>")
    assert image.sum(1).tolist() == [16, 16, 16]
    assert (batch["labels"] >= 0).any(1).all()
    model = Qwen3VLForConditionalGeneration(Qwen3VLConfig.from_pretrained(SHAPES_VL))
    grids = torch.tensor([[1, 8, 8]] * 3)
    mask = torch.ones_like(ids)
    positions, _ = model.model.get_rope_index(ids, image.int(), image_grid_thw=grids, attention_mask=mask)
    assert torch.equal(positions, batch["position_ids"])
