"""What needs a GPU: LMDeploy behind the gateway, with a model folder of one's choice.

    LENSMITH_GPU_MODEL=runs/demo/merged pytest tests/gpu

Without the variable the model is examples/shapes-vl. LENSMITH_GPU_ENGINE=transformers rehearses the tests on a CPU.

    LENSMITH_GPU_ENGINE=http://127.0.0.1:23333 LENSMITH_ENGINE_KEY=... pytest tests/gpu/test_gpu_structured.py

asks a gateway in front of an LMDeploy that runs already: tools, structured output, stop strings and log-probabilities.
Start that one with the options that `lensmith plan serve MODEL_DIR` names.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from glob import glob

import openai
import pytest

from tests.support.gateway.processes import Process, lensmith_serve
from tests.support.gpu_server import AT_URL, ENGINE, MODEL, wait_ready


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = ""
    if ENGINE == "lmdeploy" and not glob("/dev/nvidia[0-9]*"):
        reason = "needs an NVIDIA GPU"
    elif ENGINE == "lmdeploy" and importlib.util.find_spec("lmdeploy") is None:
        reason = "needs LMDeploy: pip install 'lensmith[lmdeploy]'"
    for item in items:
        if item.path.parent.name == "gpu":
            item.add_marker(pytest.mark.gpu)
            if AT_URL and item.path.name != "test_gpu_structured.py":
                item.add_marker(pytest.mark.skip(reason="needs an engine of its own"))
            if reason and item.path.name != "test_gpu_training.py":  # which says for itself what it needs
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def served() -> Iterator[Process]:
    what = ["--engine", ENGINE] if AT_URL else [str(MODEL), "--engine", ENGINE, "--model-name", "model"]
    with lensmith_serve(*what) as gateway:
        wait_ready(gateway)
        yield gateway


@pytest.fixture(scope="session")
def client(served: Process) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client
