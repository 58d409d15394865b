"""What an image processor does to pixels last, done on the model's device: 8-bit patches are a quarter to carry."""

from __future__ import annotations

from typing import Any

import torch


class Normalisation:
    """(x * scale - mean) / std of each channel, in transformers' own order of operations.

    processor: an image processor of Qwen-VL's; patch_values: numbers of a patch, its channels one after another.
    """

    def __init__(self, processor: Any) -> None:
        scale = 1.0 / processor.rescale_factor
        values = processor.temporal_patch_size * processor.patch_size**2  # of a channel
        self.mean, self.std = (
            (torch.tensor(numbers) * scale).repeat_interleave(values)
            for numbers in (processor.image_mean, processor.image_std)
        )

    def __call__(self, patches: Any) -> Any:
        """[P, values] float32 of uint8 patches; others, such as videos', are returned as they are."""
        if patches.dtype != torch.uint8:
            return patches
        if self.mean.device != patches.device:
            self.mean, self.std = self.mean.to(patches.device), self.std.to(patches.device)
        return (patches.float() - self.mean) / self.std
