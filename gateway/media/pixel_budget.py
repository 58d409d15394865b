"""What is to become of an image: the size that a model's own image processor would choose."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.media.headers import ImageHeader
from modelfiles.folder.smart_resize import smart_resize

# Pixels for `"detail": "low"`, as OpenAI's: 512 x 512.
LOW_DETAIL = 512 * 512


@dataclass(frozen=True)
class PixelBudget:
    """What a model's processor makes of an image: sides in multiples of `factor`, from `least` to `most` pixels.

    `most` is 0 where the model doesn't say and nobody limited it.
    """

    factor: int = 1
    least: int = 0
    most: int = 0

    def target(self, header: ImageHeader, detail: str | None) -> tuple[int, int] | None:
        """The (width, height) to give an image before it is turned upright; None if it can stay as it is.

        The sides are the processor's own choice, so that it has nothing left to do.
        """
        width, height = header.width, header.height
        most = self.most
        if detail == "low":
            most = max(min(most or LOW_DETAIL, LOW_DETAIL), self.least)
        if header.plain and min(width, height) >= self.factor and (most == 0 or width * height <= most):
            return None
        return smart_resize((width, height), self.factor, self.least, most)
