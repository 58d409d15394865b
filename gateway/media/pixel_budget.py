"""What is to become of an image: the size that a model's own image processor would choose."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.media.headers import ImageHeader
from modelfiles.images.smart_resize import smart_resize

# Pixels for `"detail": "low"`, as OpenAI's: 512 x 512.
LOW_DETAIL = 512 * 512


@dataclass(frozen=True)
class PixelBudget:
    """What a model's processor makes of an image: sides in multiples of `factor`, min_pixels to max_pixels in all.

    `max_pixels` is 0 where the model doesn't say and nobody limited it.
    """

    factor: int = 1
    min_pixels: int = 0
    max_pixels: int = 0

    def target(self, header: ImageHeader, detail: str | None) -> tuple[int, int] | None:
        """The (width, height) to give an image before it is turned upright; None if it can stay as it is.

        The sides are the processor's own choice, so that it has nothing left to do.
        """
        width, height = header.width, header.height
        max_pixels = self.max_pixels
        if detail == "low":
            max_pixels = max(min(max_pixels or LOW_DETAIL, LOW_DETAIL), self.min_pixels)
        if header.plain and min(width, height) >= self.factor and (max_pixels == 0 or width * height <= max_pixels):
            return None
        return smart_resize((width, height), self.factor, self.min_pixels, max_pixels)
