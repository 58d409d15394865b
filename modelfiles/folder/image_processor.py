"""The settings of a folder's image processor, which two files may hold.

preprocessor_config.json is what transformers 4.57 and Ollama read. transformers 5 writes the same settings into
processor_config.json, under `image_processor`, and reads them from there if both files exist. Everything here that
wants the settings asks this module, and what is trained is written to both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modelfiles.folder.files import positive_int, read_json

PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"
NESTED = "image_processor"
# Settings that decide the pixels which a model sees, besides the limits of their number.
PIXEL_SETTINGS = (
    "patch_size", "temporal_patch_size", "merge_size", "image_mean", "image_std", "rescale_factor", "do_rescale",
    "do_normalize", "do_resize", "do_convert_rgb",
)  # fmt: skip


def image_processor_files(folder: Path) -> dict[str, dict[str, Any]]:
    """The settings by the name of the file that holds them, the one that is read first. Raises ModelFolderError."""
    found = {}
    if (folder / PREPROCESSOR).exists():
        found[PREPROCESSOR] = read_json(folder, PREPROCESSOR)
    if (folder / PROCESSOR).exists():
        nested = read_json(folder, PROCESSOR).get(NESTED)
        if isinstance(nested, dict):
            found[PROCESSOR] = nested
    return found


def pixel_limits(settings: dict[str, Any]) -> tuple[int, int]:
    """The fewest and most pixels (width x height) that an image is resized to; 0 where the settings do not say.

    `min_pixels`/`max_pixels` win over `size.shortest_edge`/`longest_edge`, which Qwen's processors also use for
    pixel counts (transformers, image_processing_qwen2_vl.py); a fixed `size.height` x `width` gives both limits.
    """
    size = settings.get("size")
    size = size if isinstance(size, dict) else {}
    fixed = positive_int(size.get("height")) * positive_int(size.get("width"))
    min_pixels = positive_int(settings.get("min_pixels")) or positive_int(size.get("shortest_edge")) or fixed
    max_pixels = positive_int(settings.get("max_pixels")) or positive_int(size.get("longest_edge")) or fixed
    return min_pixels, max_pixels


def with_pixel_limits(settings: dict[str, Any], min_pixels: int, max_pixels: int) -> dict[str, Any]:
    """The settings with these limits under every key of theirs that holds limits."""
    changed = dict(settings)
    if "min_pixels" in settings or "max_pixels" in settings:
        changed |= {"min_pixels": min_pixels, "max_pixels": max_pixels}
    if "size" in settings or "min_pixels" not in changed:
        changed["size"] = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
    return changed


def differing_limits(folder: Path) -> str:
    """What the two files say of the number of pixels, "" if they agree. Raises ModelFolderError."""
    said = {name: pixel_limits(settings) for name, settings in image_processor_files(folder).items()}
    if len(said) == 2 and any(one and other and one != other for one, other in zip(*said.values(), strict=True)):
        return ", ".join(f"{low:,} to {high:,} pixels in {name}" for name, (low, high) in said.items())
    return ""


def differing_pixels(folder: Path) -> str:
    """The first other setting of the pixels in which the two files differ, "" if none. Raises ModelFolderError."""
    files = image_processor_files(folder)
    if len(files) == 2:
        one, other = files.values()
        for key in PIXEL_SETTINGS:
            if key in one and key in other and one[key] != other[key]:
                return f"{key} is {one[key]} in {PREPROCESSOR} and {other[key]} in {PROCESSOR}"
    return ""
