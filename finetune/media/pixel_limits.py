"""The fewest and most pixels that a model's image processor gives an image."""

from __future__ import annotations

import math
from dataclasses import dataclass

from finetune.errors import FinetuneError
from finetune.recipe.schema import Recipe
from modelfiles.folder.model_folder import ModelFolder


@dataclass(frozen=True)
class PixelLimits:
    """How a model's processor sizes images: patches of `patch` pixels, merge x merge of them to a token."""

    patch: int
    merge: int
    least: int
    most: int

    def grid(self, width: int, height: int, frames: int = 1) -> tuple[int, int, int]:
        """(1, rows, columns) of patches after the resize of an image of width x height pixels.

        frames: of a video whose limits are of all its frames together, an even number. The arithmetic of `smart_resize`
        in transformers' image_processing_qwen2_vl.py and video_processing_qwen3_vl.py (Python's round, half to even).
        Raises ValueError for an aspect ratio over 200.
        """
        factor = self.patch * self.merge
        if max(height, width) > 200 * min(height, width):
            raise ValueError(f"{width}x{height} pixels: the aspect ratio must be at most 200")
        rows, columns = round(height / factor), round(width / factor)
        if frames * rows * columns * factor**2 > self.most:
            shrink = math.sqrt(frames * height * width / self.most)
            rows = max(1, math.floor(height / shrink / factor))
            columns = max(1, math.floor(width / shrink / factor))
        elif frames * rows * columns * factor**2 < self.least:
            enlarge = math.sqrt(self.least / (frames * height * width))
            rows = math.ceil(height * enlarge / factor)
            columns = math.ceil(width * enlarge / factor)
        return 1, rows * self.merge, columns * self.merge

    def tokens(self, grid: tuple[int, int, int]) -> int:
        """Image tokens of a grid."""
        return grid[0] * grid[1] * grid[2] // self.merge**2


def pixel_limits(folder: ModelFolder, recipe: Recipe) -> PixelLimits:
    """The model's limits, narrowed by the recipe's image_min_pixels and image_max_pixels. Raises FinetuneError."""
    least, most = folder.image_pixel_limits
    if not (least and most and folder.patch_size):
        raise FinetuneError(f"{folder.path} has no preprocessor_config.json with patch_size and pixel limits.")
    least = max(least, recipe.image_min_pixels or 0)
    most = min(most, recipe.image_max_pixels or most)
    if least > most:
        raise FinetuneError(f"The image limits leave no size: at least {least} and at most {most} pixels.")
    return PixelLimits(folder.patch_size, folder.merge_size, least, most)
