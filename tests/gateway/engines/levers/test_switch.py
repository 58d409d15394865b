"""Which levers are pulled, and whether LMDeploy's functions that they replace are still those they were written for."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
from pathlib import Path

import pytest
import torch

from gateway.engines.startup.levers import KNOWN, LEVERS, wanted
from gateway.engines.startup.levers.pixel_table import from_bytes, look_up, to_bytes

# What the levers replace or call, in LMDeploy 0.18.0: file, name, the first digits of its source's SHA-256.
SEAMS = {
    ("pytorch/engine/mp_engine/zmq_rpc.py", "AsyncRPCServer"): "0acfb98722d6",
    ("pytorch/engine/mp_engine/zmq_rpc.py", "AsyncRPCClient"): "19f859586610",
    ("pytorch/engine/mp_engine/base_worker.py", "EngineInstancePool"): "45f3f1014376",
    ("pytorch/engine/mp_engine/base_worker.py", "StreamError"): "e943c2a98bcf",
    ("pytorch/engine/engine_instance.py", "EngineInstance.async_stream_infer"): "091632a7a59d",
    ("pytorch/engine/engine_loop.py", "EngineLoop._send_resp"): "ac4e73b50a79",
    ("pytorch/engine/engine.py", "response_reqs"): "5437c7bed513",
    ("pytorch/engine/request.py", "RequestManager.response"): "a31e3df7dbfc",
    ("pytorch/engine/request.py", "RequestManager.reject_request"): "01cc9be38fbd",
    ("pytorch/engine/model_agent/agent.py", "BaseModelAgent.get_output_async"): "5c919ebcf309",
    ("pytorch/models/qwen3_vl.py", "Qwen3VLVisionModel"): "4d6b922f7c1e",
    ("pytorch/models/qwen3_vl.py", "Qwen3VLForConditionalGeneration.forward"): "f7480739fa26",
    ("pytorch/models/qwen3_vl.py", "Qwen3VLForConditionalGeneration.prepare_inputs_for_generation"): "d551e8d94c58",
    ("pytorch/models/qwen3_vl.py", "Qwen3VLInputProcessor"): "130b0acd9478",
    ("pytorch/engine/model_agent/agent.py", "BaseModelAgent.warmup"): "7ee80c790c5f",
    ("pytorch/models/qwen3_vl.py", "Qwen3VLTextModel"): "10e0d37c16c8",
    ("pytorch/models/qwen3_vl.py", "Qwen3VLVisionBlock"): "6f49f789f610",
    ("pytorch/models/qwen3_vl.py", "Qwen3VLVisionPatchEmbed"): "363a54cdaec8",
    ("pytorch/models/qwen3_vl.py", "Qwen3VLVisionPatchMerger"): "b16c53444d70",
    ("pytorch/models/qwen2_5_vl.py", "Qwen2_5_VLVisionAttention"): "426262eff5df",
    ("pytorch/models/qwen3.py", "Qwen3Attention"): "a583faf0a7bf",
    ("pytorch/models/qwen3.py", "Qwen3DecoderLayer"): "16ae3d08a0cb",
    ("pytorch/nn/attention.py", "FlashAttention"): "45497ba19703",
    ("pytorch/backends/cuda/attention/default.py", "TritonAttentionImpl"): "33760cc020d8",
    ("pytorch/kernels/cuda/flashattention.py", "_flash_prefill_fwd_kernel"): "871b14588f97",
    ("pytorch/kernels/cuda/flashattention.py", "flash_attn_varlen_func"): "d7b868de7479",
    ("pytorch/kernels/cuda/fill_kv_cache.py", "_fill_kv_cache_kernel"): "2f52f247ebd5",
    ("pytorch/kernels/cuda/fill_kv_cache.py", "fill_kv_cache"): "65b8b8851b08",
    ("pytorch/multimodal/data_type.py", "MultiModalData"): "cba40decc456",
    ("vl/model/base.py", "VisionModel.preprocess"): "ee3548cf3a51",
    ("vl/model/qwen3.py", "Qwen3VLModel"): "54ca30e40a03",
    ("messages.py", "EngineOutput"): "d24c2ba39ff7",
}


def source_hash(root: Path, file: str, name: str) -> str:
    """Of a function or class in a file of a package, without importing it."""
    text = (root / file).read_text()
    node: ast.AST = ast.parse(text)
    for part in name.split("."):
        node = next(child for child in node.body if getattr(child, "name", None) == part)  # type: ignore[attr-defined]
    return hashlib.sha256((ast.get_source_segment(text, node) or "").encode()).hexdigest()[:12]


def test_every_lever_is_pulled_in_the_known_version() -> None:
    assert wanted("", KNOWN) == LEVERS


def test_levers_that_are_named_are_left_out() -> None:
    left = [lever.name for lever in wanted("pushed_tokens, pixel_bytes", KNOWN)]
    assert left == ["event_polling", "vision_inputs", "vision_graphs", "prefill_graphs"]
    assert not wanted("all", KNOWN)


def test_pixels_stay_the_processor_s_where_the_model_s_side_is_left_out() -> None:
    assert "pixel_bytes" not in [lever.name for lever in wanted("vision_inputs", KNOWN)]


def test_another_version_gets_none() -> None:
    assert not wanted("", "0.18.1")


def test_a_pixel_becomes_what_the_table_says_for_its_colour_in_every_frame() -> None:
    table = from_bytes(to_bytes(torch.arange(768).view(3, 256) / 7))
    patches = torch.tensor([[0, 255, 1, 2, 3, 4]], dtype=torch.uint8)  # two pixels of each colour
    found = look_up(patches, table, frames=2)
    expected = [0, 255, 0, 255, 257, 258, 257, 258, 515, 516, 515, 516]
    assert torch.equal(found, torch.tensor([expected]) / 7)


@pytest.mark.parametrize(("file", "name"), SEAMS)
def test_what_is_replaced_is_what_it_was(file: str, name: str) -> None:
    spec = importlib.util.find_spec("lmdeploy")
    if spec is None or spec.origin is None or importlib.metadata.version("lmdeploy") != KNOWN:
        pytest.skip(f"LMDeploy {KNOWN} is not installed")
    assert source_hash(Path(spec.origin).parent, file, name) == SEAMS[file, name]
