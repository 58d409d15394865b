"""Pictures as bytes, and what the vision tower is given, against LMDeploy's own code and transformers' processor."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("lmdeploy")

import numpy as np
import torch
from lmdeploy.pytorch.models import qwen3_vl
from lmdeploy.vl.model.qwen3 import Qwen3VLModel
from PIL import Image

from benchmarks.models import write_model
from gateway.engines.startup.levers import pixel_bytes, vision_inputs

DTYPE = torch.bfloat16
SIZES = [(64, 64)], [(300, 500), (1000, 333)], [(1500, 900)], [(31, 900)], [(96, 64)] * 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "vl"
    write_model(path, "tiny", 512 * 512)
    return path


def request(sizes: list[tuple[int, int]], mode: str = "RGB") -> tuple[list[dict[str, Any]], str]:
    rng = np.random.default_rng(0)
    pictures = [
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode)
        for width, height in sizes
    ]
    content = [*({"type": "image", "data": picture} for picture in pictures), {"type": "text", "text": "What?"}]
    prompt = "<|vision_start|><|image_pad|><|vision_end|>" * len(pictures) + "What is this?"
    return [{"role": "user", "content": content}], prompt


def model(folder: Path, dtype: torch.dtype = DTYPE) -> Any:
    made = Qwen3VLModel(str(folder), backend="pytorch")
    made.build_preprocessor()
    made.set_mm_feature_dtype(dtype)
    return made


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sizes", SIZES)
def test_bytes_become_the_processor_s_numbers_bit_for_bit(
    folder: Path, sizes: list[tuple[int, int]], dtype: torch.dtype
) -> None:
    preprocess = pixel_bytes.bytes_preprocess(Qwen3VLModel.preprocess)
    ours, theirs = model(folder, dtype), model(folder, dtype)
    for mode in ("RGB", "L", "RGB", "CMYK"):  # the first two are compared by the lever itself
        messages, prompt = request(sizes, mode)
        expected = theirs.preprocess(messages, prompt)
        found = preprocess(ours, messages, prompt)
        assert found["input_ids"] == expected["input_ids"]
        for one, other in zip(found["multimodal"], expected["multimodal"], strict=True):
            assert one["pixel_values"].dtype == torch.uint8
            assert list(one["image_grid_thw"]) == other["image_grid_thw"].tolist()
            assert tuple(one["offset"]) == tuple(other["offset"])
            table = vision_inputs.from_bytes(one["table"]).to(dtype)
            assert torch.equal(vision_inputs.look_up(one["pixel_values"], table, 2), other["pixel_values"])


def test_a_processor_that_comes_to_something_else_is_used_from_then_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preprocess = pixel_bytes.bytes_preprocess(Qwen3VLModel.preprocess)
    made = model(folder)
    monkeypatch.setitem(pixel_bytes.RESAMPLE, made.processor.image_processor.resample, pixel_bytes.RESAMPLE[2])
    for _ in range(2):
        messages, prompt = request([(300, 500)])
        assert preprocess(made, messages, prompt)["multimodal"][0]["pixel_values"].dtype == DTYPE


def test_a_relative_of_the_model_keeps_its_own_numbers(folder: Path) -> None:
    made = model(folder)
    made.hf_config.model_type = "qwen3_vl_moe"
    messages, prompt = request([(64, 64)])
    found = pixel_bytes.bytes_preprocess(Qwen3VLModel.preprocess)(made, messages, prompt)
    assert found["multimodal"][0]["pixel_values"].dtype == DTYPE


@pytest.fixture
def tower() -> Any:
    """The parts of a vision tower that its inputs are made with, without its blocks."""
    theirs = qwen3_vl.Qwen3VLVisionModel.__wrapped__
    torch.manual_seed(0)
    made = type(
        "Tower",
        (torch.nn.Module,),
        {name: vars(theirs)[name] for name in ("rot_pos_ids", "rot_pos_emb", "fast_pos_embed_interpolate")},
    )()
    made.spatial_merge_size, made.num_grid_per_side = 2, 48
    made.pos_embed = torch.nn.Embedding(48 * 48, 32, dtype=DTYPE)
    made.rotary_pos_emb = qwen3_vl.Qwen3VLVisionRotaryEmbedding(16)
    made.patch_embed = SimpleNamespace(proj=torch.nn.Conv3d(3, 32, (2, 16, 16), dtype=DTYPE))
    return made


@pytest.mark.parametrize("grids", [[(14, 14)] * 3, [(48, 48), (14, 30)]])
def test_the_tower_is_given_what_lmdeploy_gives_it(tower: Any, grids: list[tuple[int, int]]) -> None:
    language = qwen3_vl.Qwen3VLForConditionalGeneration
    made = language.__new__(language)
    torch.nn.Module.__init__(made)
    made.visual = tower
    processor = qwen3_vl.Qwen3VLInputProcessor(SimpleNamespace(model_type="qwen3_vl"), DTYPE)

    def prepared(make_data: Any, prepare: Any) -> dict[str, Any]:
        pixels = torch.Generator().manual_seed(1)
        items = [
            make_data(
                processor,
                {
                    "pixel_values": torch.rand(rows * columns, 1536, generator=pixels).to(DTYPE),
                    "image_grid_thw": torch.tensor([1, rows, columns]),
                    "offset": (0, rows * columns // 4),
                    "image_token_id": 5,
                },
            )
            for rows, columns in grids
        ]
        context = SimpleNamespace(
            input_ids=torch.tensor([[1, 5, 5, 2]]),
            position_ids=None,
            attn_metadata=None,
            input_multimodals=[{"mm_data": items}],
            input_embeddings=None,
            input_embedding_indexing=None,
        )
        with torch.inference_mode():
            inputs: dict[str, Any] = prepare(made, [], None, context)
        assert context.input_multimodals[0]["mm_data"] == items
        return inputs | {"mrope": [item.mrope_pos_ids.tolist() for item in items]}

    stock = processor.__class__._make_image_mm_data, language.prepare_inputs_for_generation
    expected = prepared(*stock)
    for _ in range(2):  # computed, then kept
        found = prepared(vision_inputs.keeping_grid(stock[0]), vision_inputs.preparing(stock[1]))
        assert found.keys() == expected.keys()
        for name in ("pixel_values", "multimodal_mask", "grid_thw", "vis_cu_seqlens", "pos_embeds"):
            assert torch.equal(found[name], expected[name]), name
            assert found[name].dtype == expected[name].dtype
        for one, other in zip(found["vis_pos_emb"], expected["vis_pos_emb"], strict=True):
            assert torch.equal(one, other.to(DTYPE))
        assert found["mrope"] == expected["mrope"]


def test_only_so_many_positions_are_kept(tower: Any) -> None:
    cache = vision_inputs.PositionCache(limit=500)
    tower.requires_grad_(False)
    for side in (10, 12, 14, 16):
        cache.get(tower, (1, side, side), DTYPE)
    assert list(cache._kept) == [(1, 14, 14), (1, 16, 16)]
