"""The fewest and the most pixels that a model's image processor gives an image."""

from __future__ import annotations

from dataclasses import dataclass

from finetune.errors import FinetuneError
from finetune.recipe.schema import Recipe
from modelfiles.folder.model_folder import ModelFolder
from modelfiles.images.smart_resize import smart_resize


@dataclass(frozen=True)
class PixelLimits:
    """How a model's processor sizes images: patches of `patch` pixels, merge x merge of them to a token."""

    patch: int
    merge: int
    min_pixels: int
    max_pixels: int

    def grid(self, width: int, height: int, frames: int = 1) -> tuple[int, int, int]:
        """(1, rows, columns) of patches after the resize of an image of width x height pixels.

        frames: of a video whose limits are of all its frames together, an even number. Raises ValueError for an aspect
        ratio over 200.
        """
        if max(height, width) > 200 * min(height, width):
            raise ValueError(f"{width}x{height} pixels: the aspect ratio must be at most 200")
        size = smart_resize((width, height), self.patch * self.merge, self.min_pixels, self.max_pixels, frames)
        return 1, size[1] // self.patch, size[0] // self.patch

    def tokens(self, grid: tuple[int, int, int]) -> int:
        """Image tokens of a grid."""
        return grid[0] * grid[1] * grid[2] // self.merge**2


def pixel_limits(folder: ModelFolder, recipe: Recipe) -> PixelLimits:
    """The model's limits, narrowed by the recipe's image_min_pixels and image_max_pixels. Raises FinetuneError."""
    min_pixels, max_pixels = folder.image_pixel_limits
    if not (min_pixels and max_pixels and folder.patch_size):
        raise FinetuneError(f"{folder.path} has no preprocessor_config.json with patch_size and pixel limits.")
    min_pixels = max(min_pixels, recipe.image_min_pixels or 0)
    max_pixels = min(max_pixels, recipe.image_max_pixels or max_pixels)
    if min_pixels > max_pixels:
        raise FinetuneError(f"The image limits leave no size: at least {min_pixels} and at most {max_pixels} pixels.")
    return PixelLimits(folder.patch_size, folder.merge_size, min_pixels, max_pixels)
