"""Writes the pixel limits of training into a merged folder's image processor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finetune.media.pixel_limits import pixel_limits
from finetune.model.supported import QWEN_VL
from finetune.recipe.schema import Recipe
from modelfiles.folder.image_processor import (
    NESTED,
    PREPROCESSOR,
    PROCESSOR,
    image_processor_files,
    with_pixel_limits,
)
from modelfiles.folder.model_folder import ModelFolder


def narrow_limits(folder: ModelFolder, copy: Path, recipe: Recipe) -> str:
    """Writes the recipe's pixel limits into every file of `copy` that holds the image processor's; says them.

    A server then makes the images that the adapter was trained on, whichever file it reads: a folder that has
    processor_config.json alone gets the other as well. "" if nothing had to change. Raises FinetuneError.
    """
    if folder.model_type not in QWEN_VL:  # others' limits cannot be narrowed
        return ""
    limits = pixel_limits(folder, recipe)
    found = image_processor_files(folder.path)
    written = {name: with_pixel_limits(found[name], limits.min_pixels, limits.max_pixels) for name in found}
    if PROCESSOR in written:
        _write(copy / PREPROCESSOR, written.get(PREPROCESSOR, written[PROCESSOR]))
        whole = json.loads((copy / PROCESSOR).read_text(encoding="utf-8"))
        _write(copy / PROCESSOR, whole | {NESTED: written[PROCESSOR]})
    elif written != found:
        _write(copy / PREPROCESSOR, written[PREPROCESSOR])
    return f"{limits.min_pixels:,} to {limits.max_pixels:,}" if written != found else ""


def _write(path: Path, settings: dict[str, Any]) -> None:
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
