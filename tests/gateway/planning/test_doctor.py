"""`lensmith doctor` on machines and with folders that have something wrong."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway.model_shapes import make_qwen3_vl, tensors
from tests.support.paths import ROOT, SHAPES_VL

T4 = "Tesla T4, 15360, 14910, 7.5, 535.104.05"
H200 = "NVIDIA H200, 143771, 143156, 9.0, 580.95.05"
GOOD = {
    "lmdeploy": "0.18.0",
    "torch": "2.11.0+cu130",
    "torchvision": "0.26.0+cu130",
    "triton": "3.6.0",
    "transformers": "5.17.0",
}


class Machine:
    """A machine as doctor sees it: nvidia-smi's answer, and installed packages by name and version."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.programs = path / "bin"
        self.packages = path / "packages"
        self.programs.mkdir()
        self.packages.mkdir()

    def gpus(self, *lines: str, code: int = 0) -> None:
        text = "\\n".join(lines)
        program = self.programs / "nvidia-smi"
        program.write_text(f"#!/bin/sh\nprintf '{text}\\n'\nexit {code}\n")
        program.chmod(0o755)

    def install(self, cuda: str | None = "13.0", **versions: str) -> None:
        for name, version in versions.items():
            info = self.packages / f"{name.replace('-', '_')}-{version}.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        torch = self.packages / "torch"
        torch.mkdir(exist_ok=True)
        (torch / "__init__.py").write_text("raise ImportError('doctor imports nothing')\n")
        (torch / "version.py").write_text(f"__version__ = 'x'\ncuda: Optional[str] = {cuda!r}\n")

    def doctor(self, *options: object) -> tuple[int, dict[str, dict[str, Any]]]:
        """The exit code, and the worst finding on each subject."""
        result = subprocess.run(
            [sys.executable, "-c", "import lensmith; lensmith.main()", "doctor", "--json", *map(str, options)],
            env={
                **os.environ,
                "PATH": f"{self.programs}:{os.environ['PATH']}",
                "PYTHONPATH": f"{self.packages}:{ROOT}",
            },
            capture_output=True,
            text=True,
            cwd=self.path,
        )
        assert "Traceback" not in result.stderr, result.stderr
        order = ["error", "warning", "ok"]
        found = sorted(json.loads(result.stdout), key=lambda finding: -order.index(finding["level"]))
        return result.returncode, {finding["subject"]: finding for finding in found}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_machine_without_a_gpu_says_so_and_is_well(machine: Machine) -> None:
    machine.gpus("NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver.", code=9)
    code, found = machine.doctor(SHAPES_VL)
    assert found["GPU"]["what"].startswith("None: nvidia-smi finds no GPU: NVIDIA-SMI has failed")
    # Ollama's image sizes are a warning about this model, wherever it is served.
    assert {subject for subject, finding in found.items() if finding["level"] != "ok"} == {"Ollama MF222"}
    assert code == 1, found
    assert found["model"]["level"] == "ok"


def test_a_good_gpu_machine_is_well(machine: Machine) -> None:
    machine.gpus(H200, H200)
    machine.install(**GOOD)
    found = machine.doctor(SHAPES_VL)[1]
    assert {subject for subject, finding in found.items() if finding["level"] == "error"} <= {"C compiler", "Python.h"}
    assert found["GPU 1"]["what"].startswith("NVIDIA H200, compute capability 9.0, 139.8 of 140.4 GiB free")
    assert found["CUDA"]["what"] == "13.0 in torch"


def test_a_t4_with_a_new_pytorch_and_an_old_driver(machine: Machine) -> None:
    machine.gpus(T4)
    machine.install(**GOOD)
    code, found = machine.doctor()
    assert code == 2
    assert found["driver"]["what"] == "535.104.05 is too old for torch's CUDA 13.0."
    assert found["driver"]["change"].startswith("Update it to 580.65.06 or later")
    assert "float16" in found["GPU 0"]["change"]


@pytest.mark.parametrize(
    ("versions", "cuda", "subject", "told"),
    [
        ({"torch": "2.9.0+cu128"}, "12.8", "torch", "10 to 20 times slower"),
        ({"torch": "2.9.1+cu128", "nvidia-cudnn-cu12": "9.10.2.21"}, "12.8", "torch", "10 to 20 times slower"),
        ({"torch": "2.12.1+cpu"}, None, "torchvision", "builds for different machines"),
        ({"torch": "2.12.1"}, None, "CUDA", "built for the CPU only"),
        ({"torch": "2.13.0"}, "13.0", "torch", "pip install 'torch>=2.4,<=2.12.1'"),
        ({"transformers": "5.8.1"}, "13.0", "transformers", "5.8.1 does not work here."),
        ({"transformers": "4.50.0"}, "13.0", "transformers", "pip install 'transformers>=4.57,"),
        ({"triton": "3.3.1"}, "13.0", "triton", "3.3.1 does not work here."),
        ({"peft": "0.18.1"}, "13.0", "peft", "environments of their own"),
    ],
)
def test_versions_that_do_not_work_together(
    machine: Machine, versions: dict[str, str], cuda: str | None, subject: str, told: str
) -> None:
    machine.gpus(H200)
    machine.install(cuda, **{**GOOD, **versions})
    code, found = machine.doctor()
    assert code == (1 if subject == "peft" else 2)
    assert told in found[subject]["what"] + found[subject]["change"]


def test_torch_2_9_1_with_a_new_cudnn_is_fine(machine: Machine) -> None:
    machine.gpus(H200)
    versions = {**GOOD, "torch": "2.9.1+cu128", "torchvision": "0.24.1+cu128", "nvidia-cudnn-cu12": "9.15.1.9"}
    machine.install("12.8", **versions)
    assert machine.doctor()[1]["torch"]["level"] == "ok"


def test_a_card_in_use_and_a_port_that_is_taken_are_warnings(machine: Machine) -> None:
    machine.gpus("NVIDIA L4, 23034, 9000, 8.9, 580.95.05")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, found = machine.doctor("--port", taken.getsockname()[1])
    assert code == 1
    assert "nvidia-smi names it" in found["GPU 0"]["change"]
    assert "lmdeploy" in found["lmdeploy"]["change"]
    assert "is in use" in found["port"]["what"]


def edit(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def test_what_lmdeploy_needs_of_a_folder(machine: Machine, tmp_path: Path) -> None:
    machine.gpus(T4)
    folder = make_qwen3_vl(tmp_path / "model", "2B")
    config = json.loads((folder / "config.json").read_text())
    text = {key: value for key, value in config["text_config"].items() if not key.endswith("os_token_id")}
    edit(folder, text_config=text | {"head_dim": 256, "tie_word_embeddings": True}, tie_word_embeddings=False)
    edit(folder, quantization_config={"quant_method": "bitsandbytes"})
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 7, "eos_token_id": [8, 7]}))
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    assert "lm_head.weight" not in tensors("2B")
    result = subprocess.run(
        [sys.executable, "-c", "import lensmith; lensmith.main()", "doctor", str(folder)],
        env={**os.environ, "PATH": f"{machine.programs}:{os.environ['PATH']}", "COLUMNS": "300"},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    for told in (
        'Add "bos_token_id": 7, "eos_token_id": 8 to text_config.',
        "the head would be random",
        "Heads of 256 need more shared memory than a Tesla T4 has.",
        "LMDeploy does not load bitsandbytes weights.",
        "The weights are called weights.safetensors",
        "chat_template.jinja from the base model",
    ):
        assert told in result.stdout
    assert result.returncode == 2


def test_a_folder_that_is_none_is_an_error(machine: Machine) -> None:
    code, found = machine.doctor(machine.path / "nowhere")
    assert code == 2
    assert "does not exist" in found["model"]["what"]
