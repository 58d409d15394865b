"""The version where the package is installed, and in a checkout that is not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from modelfiles import version
from tests.support.paths import ROOT


@pytest.fixture
def uninstalled(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise version.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(version.metadata, "version", missing)


@pytest.mark.usefixtures("uninstalled")
def test_a_checkout_says_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tmp_path / "pyproject.toml"
    project.write_text('[project]\nname = "lensmith"\nversion = "7.8.9"\n')
    monkeypatch.setattr(version, "PROJECT", project)
    assert version.lensmith_version() == "7.8.9"


@pytest.mark.usefixtures("uninstalled")
def test_where_nothing_says_it_it_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version, "PROJECT", tmp_path / "pyproject.toml")
    assert version.lensmith_version() == "unknown"


def test_the_gateway_is_made_where_nothing_is_installed() -> None:
    code = """
from importlib import metadata
found = metadata.version
def version(name):
    if name == "lensmith":
        raise metadata.PackageNotFoundError(name)
    return found(name)
metadata.version = version
import gateway.cli, lensmith, finetune.export.provenance
lensmith.main(["--version"])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("lensmith, version 0.")
