"""Writes the pixel limits of training into a merged folder's image processor."""

from __future__ import annotations

import json
from pathlib import Path

from finetune.media.pixel_limits import pixel_limits
from finetune.model.supported import QWEN_VL
from finetune.recipe.schema import Recipe
from modelfiles.folder.model_folder import ModelFolder


def narrow_limits(folder: ModelFolder, copy: Path, trained_by: Recipe | None) -> str:
    """Writes the pixel limits of the training into the processor's configuration, if they were narrower.

    A server then makes the images that the adapter has learnt from. "" if nothing had to change.
    """
    if trained_by is None or folder.model_type not in QWEN_VL:  # others' limits cannot be narrowed
        return ""
    limits = pixel_limits(folder, trained_by)
    if (limits.min_pixels, limits.max_pixels) == folder.image_pixel_limits:
        return ""
    path = copy / "preprocessor_config.json"
    if not path.exists():  # transformers 5 keeps it with the other processors' configurations
        path = copy / "processor_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    images = config.get("image_processor", config)
    if "min_pixels" in images or "max_pixels" in images:
        images |= {"min_pixels": limits.min_pixels, "max_pixels": limits.max_pixels}
    if "size" in images or "min_pixels" not in images:
        images["size"] = {"shortest_edge": limits.min_pixels, "longest_edge": limits.max_pixels}
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return f"{limits.min_pixels:,} to {limits.max_pixels:,}"
