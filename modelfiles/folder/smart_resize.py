"""The size that a Qwen-VL processor gives an image: `smart_resize` of transformers, image_processing_qwen2_vl.py."""

from __future__ import annotations

import math


def smart_resize(size: tuple[int, int], factor: int, least: int = 0, most: int = 0) -> tuple[int, int]:
    """The (width, height) that an image of `size` gets: sides in multiples of `factor`, an area in [least, most].

    All in pixels; `most` 0 is no limit.
    """
    width, height = size
    least = max(least, factor * factor)  # a side shorter than half of `factor` rounds to nothing
    new_width, new_height = (round(side / factor) * factor for side in size)
    if most and new_width * new_height > most:
        scale = math.sqrt(width * height / most)
        new_width, new_height = (max(factor, math.floor(side / scale / factor) * factor) for side in size)
    elif new_width * new_height < least:
        scale = math.sqrt(least / (width * height))
        new_width, new_height = (math.ceil(side * scale / factor) * factor for side in size)
    return new_width, new_height
