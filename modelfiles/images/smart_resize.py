"""The size that a Qwen-VL processor gives an image or a video's frames.

The arithmetic of `smart_resize` in transformers' image_processing_qwen2_vl.py and video_processing_qwen3_vl.py
(Python's round, half to even).
"""

from __future__ import annotations

import math


def smart_resize(
    size: tuple[int, int], factor: int, min_pixels: int = 0, max_pixels: int = 0, frames: int = 1
) -> tuple[int, int]:
    """The (width, height) that an image of `size` gets: sides in multiples of `factor`, an area within the limits.

    All in pixels; `max_pixels` 0 is no limit. frames: of a video whose limits are of all its frames together.
    """
    width, height = size
    columns, rows = round(width / factor), round(height / factor)
    pixels = frames * columns * rows * factor**2
    if max_pixels and pixels > max_pixels:
        shrink = math.sqrt(frames * width * height / max_pixels)
        columns, rows = math.floor(width / shrink / factor), math.floor(height / shrink / factor)
    elif pixels < min_pixels:
        enlarge = math.sqrt(min_pixels / (frames * width * height))
        columns, rows = math.ceil(width * enlarge / factor), math.ceil(height * enlarge / factor)
    # A side shorter than half of `factor` rounds to nothing.
    return max(1, columns) * factor, max(1, rows) * factor
