"""One engine process and one copy of its model for all tests of this folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
from openai import OpenAI
from safetensors.torch import load_file, save_file

from modelfiles.folder.model_folder import ModelFolder
from tests.support.gateway.embedded_process import KEY, EngineProcess, Reference
from tests.support.paths import SHAPES_VL


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """shapes-vl's folder with weights so random that every prompt has an answer of its own, in odd bytes too.

    The end tokens have a logit of 0, below the best of 2,048 random ones: no greedy answer ends by itself.
    """
    folder = tmp_path_factory.mktemp("models") / "tiny-vl"
    shutil.copytree(SHAPES_VL, folder)
    generator = torch.Generator().manual_seed(1)
    weights = load_file(folder / "model.safetensors")
    for name, weight in sorted(weights.items()):
        if weight.dim() > 1:
            scale = 0.1 if "embed_tokens" in name else 0.2
            weights[name] = (torch.randn(weight.shape, generator=generator) * scale).to(weight.dtype)
    weights["model.language_model.embed_tokens.weight"][ModelFolder.open(folder).eos_token_ids] = 0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def reference(model_dir: Path) -> Reference:
    return Reference(model_dir)


@pytest.fixture(scope="session")
def engine(model_dir: Path) -> Iterator[EngineProcess]:
    process = EngineProcess(model_dir)
    try:
        process.wait_until_ready()
        yield process
    finally:
        process.close()


@pytest.fixture(scope="session")
def http(engine: EngineProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=engine.url, headers={"authorization": f"Bearer {KEY}"}, timeout=120) as client:
        yield client


@pytest.fixture(scope="session")
def openai_client(engine: EngineProcess) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{engine.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client
