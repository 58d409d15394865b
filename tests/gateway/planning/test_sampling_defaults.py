"""generation_config.json decides where a request is silent, whatever the engine makes of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from gateway.planning.sampling_defaults import sampling_defaults
from modelfiles.folder.model_folder import ModelFolder
from tests.support.paths import ROOT


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"do_sample": False, "temperature": 0.7, "top_p": 0.8}, {"temperature": 0}),
        ({"do_sample": True, "temperature": 0.7, "top_k": 20}, {"temperature": 0.7, "top_k": 20}),
        ({}, {"temperature": 1.0}),
        (
            {
                "do_sample": True,
                "temperature": -1,
                "top_p": 0,
                "top_k": "20",
                "min_p": True,
                "repetition_penalty": 1.05,
            },
            {"temperature": 1.0, "repetition_penalty": 1.05},
        ),
    ],
)
def test_the_file_decides(tmp_path: Path, config: dict[str, Any], expected: dict[str, Any]) -> None:
    folder = tmp_path / "model"
    shutil.copytree(ROOT / "examples" / "shapes-vl", folder)
    (folder / "generation_config.json").write_text(json.dumps(config))
    assert sampling_defaults(ModelFolder.open(folder)) == expected
