"""The size that a Qwen-VL processor gives an image: `smart_resize` of transformers, image_processing_qwen2_vl.py."""

from __future__ import annotations

import math


def smart_resize(size: tuple[int, int], factor: int, min_pixels: int = 0, max_pixels: int = 0) -> tuple[int, int]:
    """The (width, height) that an image of `size` gets: sides in multiples of `factor`.

    Its area lies in [min_pixels, max_pixels]. All in pixels; `max_pixels` 0 is no limit.
    """
    width, height = size
    min_pixels = max(min_pixels, factor * factor)  # a side shorter than half of `factor` rounds to nothing
    new_width, new_height = (round(side / factor) * factor for side in size)
    if max_pixels and new_width * new_height > max_pixels:
        scale = math.sqrt(width * height / max_pixels)
        new_width, new_height = (max(factor, math.floor(side / scale / factor) * factor) for side in size)
    elif new_width * new_height < min_pixels:
        scale = math.sqrt(min_pixels / (width * height))
        new_width, new_height = (math.ceil(side * scale / factor) * factor for side in size)
    return new_width, new_height
