"""Containers run Lensmith under a user id that has neither a name nor a home directory."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.support.paths import ROOT, SHAPES_VL
from tests.support.studio.datasets import picture
from tests.support.unmeasured import unmeasured

# What Python does where /etc/passwd has no line for the user.
NAMELESS = """
import pwd

def nobody(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")

pwd.getpwuid = nobody
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A recipe for a shard, whose images are unpacked into the cache."""
    (tmp_path / "python").mkdir()
    (tmp_path / "python" / "sitecustomize.py").write_text(NAMELESS)
    with tarfile.open(tmp_path / "train.tar", "w") as shard:
        for name, data in {"0.png": picture(size=(64, 64)), "0.txt": b"a red picture"}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            shard.addfile(info, io.BytesIO(data))
    recipe = {"model_name_or_path": str(SHAPES_VL), "dataset": "train.tar", "dataset_dir": str(tmp_path)}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe | {"output_dir": str(tmp_path / "out"), "max_steps": 1}))
    return tmp_path


@pytest.mark.parametrize(
    ("command", "home"),
    [(["check", "recipe.yaml"], "/dev/null"), (["doctor"], "/dev/null"), (["doctor"], None), (["env"], None)],
)
def test_a_user_without_a_name_and_a_home_is_served(folder: Path, command: list[str], home: str | None) -> None:
    names = {"HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "XDG_CACHE_HOME"}
    given = {name: value for name, value in unmeasured().items() if name not in names}
    given |= {"PYTHONPATH": f"{folder / 'python'}:{ROOT}", "TMPDIR": str(folder)} | ({"HOME": home} if home else {})
    program = [sys.executable, "-m", "lensmith", *command]
    told = subprocess.run(program, cwd=folder, env=given, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in told.stderr
    if command[0] == "check":
        assert "Would start." in told.stdout, told.stdout + told.stderr
        assert list(folder.glob("lensmith-images-*/*")), "the images are where they can be"
