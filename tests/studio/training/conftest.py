"""The fixtures of a signed-in client, a workspace with data, and a machine with two GPUs."""

from pathlib import Path

import pytest

from studio.jobs.devices import Devices
from studio.web.pages import train
from tests.support.studio.applications import client, studio
from tests.support.studio.data import shapes
from tests.support.unmeasured import unmeasured_children

__all__ = ["client", "shapes", "studio", "unmeasured_children"]

T4 = "Tesla T4, 15360, 14000, 7.5, 550.54"
H100 = "NVIDIA H100 80GB HBM3, 81559, 81000, 9.0, 550.54"


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a T4 and an H100, as nvidia-smi would have it."""
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho '{T4}'\necho '{H100}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(train, "_devices", Devices())
