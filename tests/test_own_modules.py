"""A user's own finetune.py or gateway/ in the current folder is none of our business, whatever is started there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from gateway.engines.spec import LMDEPLOY, TRANSFORMERS
from modelfiles.hardware.python_child import module_command
from tests.support.gateway.processes import Process, fake_engine, free_port
from tests.support.gateway.requests import CHAT, picture
from tests.support.paths import ROOT
from tests.support.unmeasured import unmeasured

TRAP = "raise SystemExit('a module of the user was imported')\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With modules of the names that ours and click have."""
    for name in ("finetune", "modelfiles", "click"):
        (tmp_path / f"{name}.py").write_text(TRAP)
    for name in ("gateway", "studio"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(TRAP)
    return tmp_path


@pytest.fixture(scope="module")
def engine() -> Iterator[Process]:
    with fake_engine() as process:
        yield process


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = unmeasured() | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("command", [["train", "--help"], ["serve", "--help"], ["modelfile", "--help"], ["env"]])
def test_lensmith_as_torchrun_starts_it(folder: Path, command: list[str]) -> None:
    ended = run([sys.executable, "-m", "lensmith", *command], folder)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize("module", ["gateway.embedded", "lensmith", "finetune.recipe.page"])
def test_the_modules_that_we_start(folder: Path, module: str) -> None:
    ended = run([*module_command(module), "--help"], folder)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_the_engines_that_we_start_are_started_that_way(folder: Path) -> None:
    for spec in (TRANSFORMERS, LMDEPLOY):
        argv = spec.argv(python=sys.executable, folder=Path("/nowhere"), name="m", port=1)
        assert argv[:4] == module_command(argv[3])


def test_a_gateway_and_its_image_workers(folder: Path, engine: Process) -> None:
    port = free_port()
    argv = [sys.executable, "-m", "lensmith", "serve", "--engine", engine.url, "--port", str(port)]
    with Process(argv, port, cwd=folder, PYTHONPATH=str(ROOT)) as gateway:
        gateway.wait_until("/ready", 200)
        content = [{"type": "text", "text": "echo"}, {"type": "image_url", "image_url": {"url": picture("GIF")}}]
        body = {"model": "fake", "messages": [{"role": "user", "content": content}]}
        answer = httpx.post(gateway.url + CHAT, json=body, timeout=60)
        assert "data:image/" in answer.json()["choices"][0]["message"]["content"], answer.text
