"""A run of a workspace that has learnt to say one word, without the training."""

from __future__ import annotations

from pathlib import Path

import yaml

from tests.support.gateway.saying_adapter import saying_adapter
from tests.support.paths import SHAPES_VL

WORD = "triangle"


def tuned_run(workspace: Path, name: str, word: str = WORD) -> Path:
    """runs/NAME with a recipe and, in output/, an adapter with which shapes-vl answers "word word word …"."""
    folder = workspace / "runs" / name
    saying_adapter(folder / "output", f"Ġ{word}")
    recipe = {
        "model_name_or_path": str(SHAPES_VL),
        "finetuning_type": "lora",
        "dataset": "words",
        "output_dir": f"runs/{name}/output",
        "image_max_pixels": 65536,
    }
    for path in (folder, folder / "output"):
        (path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return folder
