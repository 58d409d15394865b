"""Writes the pixel limits of training into a merged folder's image processor."""

from __future__ import annotations

import json
from pathlib import Path

from finetune.media.pixel_limits import pixel_limits
from finetune.model.supported import QWEN_VL
from finetune.recipe.schema import Recipe
from modelfiles.folder.model_folder import ModelFolder

# Which of them a program reads depends on the program: transformers 5 the second, if it is there; transformers 4.57 and
# Ollama the first.
FILES = ("preprocessor_config.json", "processor_config.json")


def narrow_limits(folder: ModelFolder, copy: Path, recipe: Recipe) -> str:
    """Writes the recipe's pixel limits into every file of `copy` that holds the image processor's; says them.

    A server then makes the images that the adapter was trained on. "" if nothing had to change. Raises FinetuneError.
    """
    if folder.model_type not in QWEN_VL:  # others' limits cannot be narrowed
        return ""
    limits = pixel_limits(folder, recipe)
    size = {"min_pixels": limits.min_pixels, "max_pixels": limits.max_pixels}
    changed = False
    for path in (copy / name for name in FILES):
        if not path.exists():
            continue
        config = json.loads(path.read_text(encoding="utf-8"))
        images = config.get("image_processor", config if path.name == FILES[0] else None)
        if not isinstance(images, dict):
            continue
        before = json.dumps(images, sort_keys=True)
        if "min_pixels" in images or "max_pixels" in images:
            images |= size
        if "size" in images or "min_pixels" not in images:
            images["size"] = {"shortest_edge": limits.min_pixels, "longest_edge": limits.max_pixels}
        if json.dumps(images, sort_keys=True) != before:
            path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            changed = True
    return f"{limits.min_pixels:,} to {limits.max_pixels:,}" if changed else ""
