"""The model folder's own processor, loaded once: its tokenizer, chat template and image processor."""

from __future__ import annotations

from typing import Any

from finetune.images import PixelLimits
from modelfiles.folder import ModelFolder


def load_processor(folder: ModelFolder, limits: PixelLimits) -> Any:
    """The processor with the pixel limits set."""
    from transformers import AutoImageProcessor, AutoProcessor

    processor = AutoProcessor.from_pretrained(folder.path, local_files_only=True)
    processor.image_processor = AutoImageProcessor.from_pretrained(
        folder.path, min_pixels=limits.least, max_pixels=limits.most, local_files_only=True
    )
    return processor
