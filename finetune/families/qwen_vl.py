"""The Qwen-VL families: sizes from headers, ids by arithmetic, and features of a frozen vision tower made once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from finetune.encoding.chat_encoder import ChatEncoder
from finetune.encoding.encoded import Encoded
from finetune.encoding.encoded_rows import media_of
from finetune.errors import FinetuneError
from finetune.families.base import Reader
from finetune.families.batch import Batch, collate_train
from finetune.families.features import FrozenFeatures, TrainedVision
from finetune.families.forward import LabelLoss
from finetune.families.generation.greedy import greedy
from finetune.media.bank import ImageBank
from finetune.media.pixel_limits import PixelLimits, pixel_limits
from finetune.media.videos import VideoRules
from finetune.model.attention import packs
from finetune.model.structure import trains_vision
from finetune.model.whole_base import refuse_incomplete
from finetune.recipe.schema import Recipe
from modelfiles.folder.image_processor import differing_pixels
from modelfiles.folder.model_folder import ModelFolder

# What stands around images and videos in a chat's text, with the times of videos.
VISION = re.compile(r"(<\d+\.\d seconds>(?=<\|vision_start\|>))?<\|vision_(start|end)\|>")


class QwenVL:
    """family.Family for Qwen3-VL, Qwen2.5-VL and Qwen2-VL."""

    def read(self, folder: ModelFolder, recipe: Recipe) -> Reader:
        refuse_incomplete(folder)
        if difference := differing_pixels(folder.path):
            raise FinetuneError(
                f"{folder.path}: {difference}, so what the model sees would depend on the program that reads them; "
                "copy the right value into the other file."
            )
        limits = pixel_limits(folder, recipe)
        processor = load_processor(folder, limits)
        bank = ImageBank(limits, VideoRules(folder, processor, recipe))
        return Reader(folder, processor, bank, ChatEncoder(folder, processor, bank))

    def feed(
        self,
        base: Any,
        reader: Reader,
        images: Sequence[int],
        reused: bool = False,
        processes_per_host: int = 1,
        folder: Path | None = None,
    ) -> QwenFeed:
        return QwenFeed(base, reader, images, reused, processes_per_host, folder)

    def loss(self, base: Any, noise: float) -> Any:
        return LabelLoss(base, noise)


class QwenFeed:
    """family.Feed: ids and positions are known; images are a frozen tower's features, or pixels for a trained one."""

    def __init__(
        self, base: Any, reader: Reader, images: Sequence[int], reused: bool, processes_per_host: int,
        folder: Path | None = None,
    ) -> None:  # fmt: skip
        assert isinstance(reader.bank, ImageBank)
        self.base, self.processor, self.bank = base, reader.processor, reader.bank
        self.device, self.eos = base.lm_head.weight.device, reader.folder.eos_token_ids
        self.packing = packs(base)
        self.images: FrozenFeatures | TrainedVision
        if trains_vision(base):
            self.images = TrainedVision(base, self.device, self.bank, self.processor)
        else:
            self.images = FrozenFeatures(base, self.bank, self.processor, images, reused, processes_per_host, folder)

    def prefetch(self, rows: Sequence[Encoded]) -> None:
        self.images.prefetch(_images(rows))

    def batch(self, rows: Sequence[Encoded]) -> tuple[Batch, Any]:
        batch = collate_train(rows, self.device, self.packing)
        return batch, self.images.get(batch.images)

    def generate(
        self, prompts: Sequence[Encoded], max_new_tokens: int, rows: int | None = None
    ) -> Iterator[tuple[int, list[int]]]:
        images = self.images
        if isinstance(images, TrainedVision):  # features of the tower as it is now
            images = FrozenFeatures(self.base, self.bank, self.processor, media_of(prompts).flat.tolist())
        return greedy(self.base, prompts, images, self.eos, max_new_tokens, rows)

    def question(self, prompt: Encoded) -> str:
        config = self.base.config
        seen = np.isin(prompt.ids, (config.image_token_id, config.video_token_id))
        text = self.processor.tokenizer.decode(prompt.ids[~seen])
        said = text.rpartition("<|im_start|>user\n")[2].partition("<|im_end|>")[0]
        return VISION.sub("", said).strip()

    def close(self) -> None:
        self.images.close()


def _images(rows: Sequence[Encoded]) -> list[int]:
    return [image for row in rows for image in row.images]


def load_processor(folder: ModelFolder, limits: PixelLimits) -> Any:
    """The processor with the pixel limits set."""
    from transformers import AutoImageProcessor, AutoProcessor

    processor = AutoProcessor.from_pretrained(folder.path, local_files_only=True)
    processor.image_processor = AutoImageProcessor.from_pretrained(
        folder.path, min_pixels=limits.min_pixels, max_pixels=limits.max_pixels, local_files_only=True
    )
    return processor
