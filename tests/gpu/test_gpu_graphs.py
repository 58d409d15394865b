"""CUDA graphs of a small Qwen3-VL in LMDeploy's own code, beside what LMDeploy launches kernel by kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("lmdeploy")
pytest.importorskip("triton")

import torch

from benchmarks.models import write_model
from gateway.engines.startup.levers.captured_calls import cuda_graph
from tests.support.small_lmdeploy import CASES, compare, small_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "vl"
    write_model(path, "tiny", 512 * 512)
    return path


@pytest.mark.parametrize("case", CASES)
def test_a_graph_computes_what_the_kernels_do(folder: Path, case: str) -> None:
    model = small_model(folder, torch.device("cuda"), torch.bfloat16)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        result = compare(model, cuda_graph, **CASES[case])
    assert result["replayed"]
    assert result["difference"] < result["largest"] * 0.02  # bfloat16: 8 bits
